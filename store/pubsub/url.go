package pubsub

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Target is a topic and how to reach it, as ParseURL reads it.
type Target struct {
	Scheme  string   // kafka, nats, gcppubsub or mem
	Servers []string // host:port; for gcppubsub the project
	Topic   string   // topic or subject
	User    string
	options map[string]string
}

// String is the target without what only concerns the connection.
func (t Target) String() string {
	return t.Scheme + "://" + strings.Join(t.Servers, ",") + "/" + t.Topic
}

// accepted lists the options of each kind of broker.
func accepted(scheme string) ([]string, bool) {
	secure := []string{"tls", "ca", "cert", "key", "password-file"}
	switch scheme {
	case "kafka":
		return append(secure, "sasl"), true
	case "nats":
		return append(secure, "credentials", "token-file", "ack"), true
	case "gcppubsub":
		return []string{"credentials", "endpoint", "emulator"}, true
	case "mem":
		return nil, true
	}
	return nil, false
}

// ParseURL reads where messages go:
//
//	kafka://[USER@]BROKER[:9092][,BROKER…]/TOPIC[?OPTION=VALUE…]
//	nats://[USER@]HOST[:4222][,HOST…]/SUBJECT[?OPTION=VALUE…]
//	gcppubsub://PROJECT/TOPIC[?OPTION=VALUE…]
//	gcppubsub://projects/PROJECT/topics/TOPIC[?OPTION=VALUE…]
//	mem:///TOPIC
//
// Options of Kafka and NATS: tls=true connects by TLS, as do ca, cert and key,
// which name PEM files with the authorities to trust instead of the system's
// and with a client's certificate and key; password-file names a file that holds
// USER's password. Kafka's sasl is plain (the default with a user), scram-sha-256
// or scram-sha-512. NATS' credentials names a .creds file, token-file a file that
// holds a token; ack is stream (the default: a JetStream stream must have stored
// the message) or server (the server has received it; whoever is not listening
// then never sees it).
//
// Google Cloud Pub/Sub is reached with the credentials that are found where Google's
// libraries look for them (workload identity, for instance), or those of the file
// that credentials names; endpoint is the host:port of a regional service, emulator
// that of an emulator, which PUBSUB_EMULATOR_HOST names too.
//
// It fails on another scheme, no host or topic, options or words that it does
// not know, and a password in the URL itself, which would be readable for
// everyone who may read the settings.
func ParseURL(s string) (Target, error) {
	t, err := parseURL(s)
	if err != nil {
		return Target{}, fmt.Errorf("reading the URL of a message queue: %w", err)
	}
	return t, nil
}

func parseURL(s string) (Target, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	known, isKnown := accepted(scheme)
	if !ok || !isKnown {
		// What was given may hold a password and is not repeated.
		return Target{}, errors.New("it must begin with kafka://, nats://, gcppubsub:// or mem://")
	}
	t := Target{Scheme: scheme, options: map[string]string{}}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, topic, _ := strings.Cut(rest, "/")
	if user, after, ok := strings.Cut(hosts, "@"); ok {
		if strings.Contains(user, ":") {
			return Target{}, errors.New("it holds a password; put that into a file (a mounted Secret) and name it: USER@HOST/TOPIC?password-file=PATH")
		}
		var err error
		if t.User, err = url.PathUnescape(user); err != nil || t.User == "" {
			return Target{}, errors.New("the user before @ is empty or not escaped as in a URL")
		}
		hosts = after
	}
	var err error
	if t.Topic, err = url.PathUnescape(topic); err != nil {
		return Target{}, errors.New("the topic is not escaped as in a URL")
	}
	if t.Topic == "" && scheme == "mem" { // as upstream's library spells it
		t.Topic, hosts = hosts, ""
	}
	if t.Topic == "" || strings.ContainsAny(t.Topic, " \t\r\n\x00") {
		return Target{}, fmt.Errorf("topic %q is empty or has spaces; it is what follows the hosts: %s://HOST/TOPIC", t.Topic, scheme)
	}
	if scheme == "nats" && (strings.ContainsAny(t.Topic, "*>") || strings.HasPrefix(t.Topic, ".") || strings.HasSuffix(t.Topic, ".") || strings.Contains(t.Topic, "..")) {
		return Target{}, fmt.Errorf("subject %q is a pattern or has an empty part; messages need one subject", t.Topic)
	}
	switch scheme {
	case "mem":
	case "gcppubsub":
		if t.User != "" {
			return Target{}, errors.New("Pub/Sub knows no user; its credentials are found by themselves, or in the file of option credentials")
		}
		if t, err = googleTarget(t, hosts); err != nil {
			return Target{}, err
		}
	default:
		if t.Servers, err = servers(hosts, map[string]string{"kafka": "9092", "nats": "4222"}[scheme]); err != nil {
			return Target{}, err
		}
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return Target{}, errors.New("the options after ? are not escaped as in a URL")
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, name) {
			return Target{}, fmt.Errorf("unknown option %q; accepted: %s", name, strings.Join(known, ", "))
		}
		if len(values[name]) > 1 || values[name][0] == "" {
			return Target{}, fmt.Errorf("option %s must be given once and not be empty", name)
		}
		t.options[name] = values[name][0]
	}
	return t, t.check()
}

// check returns an error unless the options' words are known and fit together.
func (t Target) check() error {
	for name, words := range map[string][]string{
		"tls": {"true", "false"}, "ack": {"stream", "server"}, "sasl": {"plain", "scram-sha-256", "scram-sha-512"},
	} {
		if v, ok := t.options[name]; ok && !slices.Contains(words, v) {
			return fmt.Errorf("unknown word %q of option %s; accepted: %s", v, name, strings.Join(words, ", "))
		}
	}
	has := func(name string) bool { return t.options[name] != "" }
	switch {
	case t.options["tls"] == "false" && (has("ca") || has("cert") || has("key")):
		return errors.New("tls=false contradicts ca, cert and key")
	case has("cert") != has("key"):
		return errors.New("cert and key must be given together")
	case (t.User != "") != has("password-file"):
		return errors.New("a user before @ and the option password-file must be given together")
	case has("sasl") && t.User == "":
		return errors.New("option sasl needs a user before @ and password-file")
	}
	for _, name := range []string{"endpoint", "emulator"} {
		if v := t.options[name]; v != "" {
			if _, _, err := net.SplitHostPort(v); err != nil {
				return fmt.Errorf("option %s is not HOST:PORT", name)
			}
		}
	}
	if has("emulator") && (has("endpoint") || has("credentials")) {
		return errors.New("an emulator knows no credentials, and is the endpoint: option emulator stands alone")
	}
	secrets := 0
	for _, name := range []string{"password-file", "credentials", "token-file"} {
		if has(name) {
			secrets++
		}
	}
	if secrets > 1 {
		return errors.New("only one of password-file, credentials and token-file can be used")
	}
	return nil
}

func servers(hosts, port string) ([]string, error) {
	var out []string
	for host := range strings.SplitSeq(hosts, ",") {
		host = strings.TrimSpace(host)
		h, p, err := net.SplitHostPort(host)
		if err != nil {
			h, p = strings.Trim(host, "[]"), port
		}
		if h == "" || p == "" || strings.ContainsAny(h, " \t\r\n\x00\"") {
			return nil, fmt.Errorf("host %q is not a name with an optional port", host)
		}
		out = append(out, net.JoinHostPort(h, p))
	}
	return out, nil
}

// tls is the TLS configuration, nil for none.
func (t Target) tls() (*tls.Config, error) {
	if t.options["tls"] != "true" && t.options["ca"] == "" && t.options["cert"] == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if path := t.options["ca"]; path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading option ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("reading option ca: %s holds no certificate in PEM", path)
		}
	}
	if t.options["cert"] != "" {
		pair, err := tls.LoadX509KeyPair(t.options["cert"], t.options["key"])
		if err != nil {
			return nil, fmt.Errorf("reading options cert and key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// secret reads the file that an option names; one newline at its end does not
// count.
func (t Target) secret(option string) (string, error) {
	data, err := os.ReadFile(t.options[option])
	if err != nil {
		return "", fmt.Errorf("reading option %s: %w", option, err)
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if s == "" {
		return "", fmt.Errorf("reading option %s: %s is empty", option, t.options[option])
	}
	return s, nil
}
