package gateserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// TLSFiles are what the server shows and whom it believes. They are read again when they
// change, as they do in a mounted Secret.
type TLSFiles struct {
	// Certificate and Key are PEM.
	Certificate, Key string
	// ClientCA, if any, has the certificates that clients' are checked by. Clients need
	// not have one; see Access.
	ClientCA string
}

// TLS is the configuration for Serve. It fails where a file cannot be read, or key and
// certificate do not belong together.
func (s *Server) TLS(f TLSFiles) (*tls.Config, error) {
	own, err := watch(s.log, s.m.files.Inc, func(b [][]byte) (*tls.Certificate, error) {
		c, err := tls.X509KeyPair(b[0], b[1])
		return &c, err
	}, f.Certificate, f.Key)
	if err != nil {
		return nil, err
	}
	var clients *watched[*x509.CertPool]
	if f.ClientCA != "" {
		clients, err = watch(s.log, s.m.files.Inc, func(b [][]byte) (*x509.CertPool, error) {
			p := x509.NewCertPool()
			if !p.AppendCertsFromPEM(b[0]) {
				return nil, errors.New("there is no certificate in it")
			}
			return p, nil
		}, f.ClientCA)
		if err != nil {
			return nil, err
		}
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{*own.get()}}
			if clients != nil {
				c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, clients.get()
			}
			return c, nil
		},
		// ServeTLS wants to see one.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own.get(), nil },
	}, nil
}
