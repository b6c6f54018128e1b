package netns

import (
	"fmt"
	"net"
	"net/netip"
)

// Policy says which addresses an open network may reach. The zero Policy allows
// the world and private ranges, where mirrors and proxies of a build farm live,
// and refuses the machine itself and what is only meant for it.
type Policy struct {
	// DenyPrivate refuses private ranges (RFC 1918, RFC 4193, RFC 6598) too.
	DenyPrivate bool
	// Deny refuses more. It wins over Allow.
	Deny []netip.Prefix
	// Allow permits what would be refused: for tests, and for a service of the
	// machine's own that tasks are meant to use. Never a default.
	Allow []netip.Prefix
}

// refused lists what no task has business with. Addresses of metadata services
// hand out the machine's credentials, and not all are link-local.
var refused = prefixes(
	"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
	"::/128", "::1/128", "fe80::/10", "ff00::/8",
	"100.100.100.200/32", // Alibaba Cloud metadata
	"192.0.0.192/32",     // Oracle Cloud metadata
	"168.63.129.16/32",   // Azure's channel to the host
	"fd00:ec2::254/128",  // AWS metadata
	"64:ff9b::/96",       // any IPv4 address again, translated
	"2002::/16",          // and again, by 6to4
	"10.0.2.0/24",        // the task's own link
)

var private = prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Check returns nil if a may be reached and else an error that says why not.
func (p Policy) Check(a netip.Addr) error {
	if !a.IsValid() {
		return fmt.Errorf("reaching an address: it is not valid")
	}
	a = a.Unmap().WithZone("")
	switch {
	case contains(p.Deny, a):
		return fmt.Errorf("reaching %s: denied by setting", a)
	case contains(p.Allow, a):
		return nil
	case contains(refused, a):
		return fmt.Errorf("reaching %s: only for the machine itself", a)
	case p.DenyPrivate && contains(private, a):
		return fmt.Errorf("reaching %s: private range", a)
	}
	// Asked anew each time, since a machine's addresses change while it runs.
	own, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("reaching %s: listing own addresses: %w", a, err)
	}
	for _, o := range own {
		if q, err := netip.ParsePrefix(o.String()); err != nil || q.Addr().Unmap() == a {
			return fmt.Errorf("reaching %s: the machine's own address", a)
		}
	}
	return nil
}
