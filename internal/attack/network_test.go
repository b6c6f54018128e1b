package attack_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"assay.dev/assay/ledger"
)

// TestNetwork: what a hermetic task can open, and what no task reaches.
func TestNetwork(t *testing.T) {
	r := newRig(t)

	t.Run("hermetic task opens a socket of any family", func(t *testing.T) {
		o := r.run(t, task{steps: []string{`attack families; probe sockets | sed 's/^/made /'; echo done`}})
		o.ended(ledger.Succeeded)
		o.has(`^done$`)
		o.none(` ok$`)
		// What can be made at all: Unix, inet, inet6, and the netlink protocols for
		// interfaces (0); in a namespace of its own none of them leads anywhere.
		for line := range strings.Lines(o.said()) {
			if s, ok := strings.CutPrefix(strings.TrimSpace(line), "made "); ok {
				switch strings.Fields(s)[0] {
				case "1", "2", "10":
				case "16":
					if strings.Fields(s)[2] != "0" {
						t.Errorf("netlink socket %s", s)
					}
				default:
					t.Errorf("socket %s", s)
				}
			}
		}
		f := o.finished("attack")
		if !f.Hermetic.Enforced || len(f.Interfaces) != 0 || len(f.Network) != 0 {
			t.Errorf("recorded: %+v", f)
		}
	})

	t.Run("hermetic task changes its interfaces", func(t *testing.T) {
		o := r.run(t, task{steps: []string{`
			ip link add d0 type dummy && echo GOT dummy
			ip link add v0 type veth peer name v1 && echo GOT veth
			ip tuntap add t0 mode tap && echo GOT tap
			ip addr add 10.1.1.1/24 dev lo && echo GOT address
			ip route add default dev lo && echo GOT route
			ip link set lo mtu 1000 && echo GOT mtu
			test -e /dev/net/tun && echo GOT tun
			ip -o link | wc -l | sed 's/^/links /'`}})
		o.ended(ledger.Succeeded)
		o.none(`GOT`)
		o.has(`^links 1$`)
	})

	t.Run("open network reaches the machine's own services", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("host service")) }))
		defer srv.Close()
		_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
		all, err := net.Listen("tcp", "0.0.0.0:0") // on every address of the machine
		must(t, err)
		defer all.Close()
		go func() {
			for {
				c, err := all.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		_, allPort, _ := net.SplitHostPort(all.Addr().String())
		addrs := "tcp:127.0.0.1:" + port + " tcp:localhost:" + port + " tcp:0.0.0.0:" + port + " tcp:127.0.0.2:" + port + " tcp:10.0.2.1:" + port + " tcp:10.0.2.2:" + port + " tcp:[::ffff:127.0.0.1]:" + port + " tcp:169.254.169.254:80"
		own, err := net.InterfaceAddrs()
		must(t, err)
		for _, a := range own {
			ip, _, _ := net.ParseCIDR(a.String())
			addrs += " tcp:" + net.JoinHostPort(ip.String(), allPort)
		}
		for _, network := range []string{"none", "registry", "open"} {
			o := r.run(t, task{network: network, steps: []string{`attack dial ` + addrs + `; echo done`}})
			o.ended(ledger.Succeeded)
			o.has(`^done$`)
			o.none(` ok$|host service`)
		}
		// But what is forwarded on purpose is there, for open networks, and recorded.
		fwd := "--forward=" + srv.Listener.Addr().String()
		o := r.run(t, task{network: "open", steps: []string{`wget -q -O - http://localhost:` + port + `/; echo`}}, fwd)
		o.has(`^host service$`)
		if f := o.finished("attack"); len(f.Network) == 0 || f.Hermetic.Enforced {
			t.Errorf("recorded: %+v", f)
		}
		o = r.run(t, task{network: "registry", steps: []string{`wget -q -O - http://localhost:` + port + `/; echo`}}, fwd)
		o.none(`host service`)
	})

	t.Run("the observer's socket", func(t *testing.T) {
		sock := filepath.Join(r.Home, "run/observer/sock")
		for _, network := range []string{"none", "registry", "open"} {
			o := r.run(t, task{network: network, steps: []string{`
				attack unix ` + sock + ` '{"admit":{"run":"x","executorUid":5}}'
				attack unix /proc/1/root` + sock + ` '{"executor":{"run":"x"}}'
				find / -xdev -type s | sed 's/^/socket /'
				echo done`}})
			o.has(`^done$`)
			o.none(` ok|^socket`)
		}
	})

	t.Run("socket, FIFO and files in a shared folder", func(t *testing.T) {
		// A folder of the host reaches out of the sandbox by design: then hermetic
		// is not enforced, whatever the network.
		dir := filepath.Join(filepath.Dir(r.Home), "shared")
		must(t, os.MkdirAll(dir, 0o777))
		must(t, os.Chmod(dir, 0o777))
		l, err := net.Listen("unix", filepath.Join(dir, "sock"))
		must(t, err)
		defer l.Close()
		must(t, os.Chmod(filepath.Join(dir, "sock"), 0o666))
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Write([]byte("from outside\n"))
				time.Sleep(50 * time.Millisecond)
				c.Close()
			}
		}()
		must(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
		must(t, os.Chmod(filepath.Join(dir, "fifo"), 0o666))
		k := task{steps: []string{`
			attack unix $(workspaces.shared.path)/sock hello
			(echo leak >$(workspaces.shared.path)/fifo &) ; sleep 0.2
			echo done`}}
		k.spec = map[string]any{"workspaces": []any{map[string]any{"name": "shared"}}}
		for _, mode := range []string{"", ":ro"} {
			spec, annotations := k.object(r.image)
			o := r.object(t, map[string]any{
				"apiVersion": "tekton.dev/v1", "kind": "TaskRun",
				"metadata": map[string]any{"generateName": "attack-", "annotations": annotations},
				"spec":     map[string]any{"taskSpec": spec, "workspaces": []any{map[string]any{"name": "shared", "emptyDir": map[string]any{}}}},
			}, "--workspace", "shared="+dir+mode)
			if o.rec == nil || len(o.finishedAll()) == 0 {
				t.Fatalf("%s", o.Stderr)
			}
			f := o.finished("attack")
			if f.Hermetic.Enforced || len(f.Hermetic.Reasons) == 0 {
				t.Errorf("%q: hermetic is enforced with a folder that others write: %+v\n%s", mode, f.Hermetic, o.said())
			}
		}
	})
	r.clean(t)
}
