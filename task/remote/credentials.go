package remote

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Login is a user name and a password or token.
type Login struct{ Username, Password string }

// Credentials are the logins of a docker configuration file: registry host, or
// host and path, → login. The zero value has none, which is anonymous access.
type Credentials struct{ logins map[string]Login }

// maxConfig bounds a docker configuration file.
const maxConfig = 1 << 20

// ReadCredentials reads config.json as docker writes it. A file that does not
// exist holds no credentials. Credential helpers are programs, and not run:
// a configuration that needs one is refused by name.
func ReadCredentials(path string) (Credentials, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Credentials{}, nil
	}
	if err != nil {
		return Credentials{}, fmt.Errorf("reading registry credentials: %w", err)
	}
	c, err := ParseCredentials(data)
	if err != nil {
		return Credentials{}, fmt.Errorf("reading registry credentials from %s: %w", path, err)
	}
	return c, nil
}

// ParseCredentials is ReadCredentials for the file's content. Its errors never
// hold a part of it.
func ParseCredentials(data []byte) (Credentials, error) {
	if len(data) > maxConfig {
		return Credentials{}, errors.New("the file is too large")
	}
	var config struct {
		Auths map[string]struct {
			Auth     string `json:"auth"`
			Username string `json:"username"`
			Password string `json:"password"`
		} `json:"auths"`
		Store   string            `json:"credsStore"`
		Helpers map[string]string `json:"credHelpers"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return Credentials{}, errors.New("the file is not a docker configuration in JSON")
	}
	if config.Store != "" || len(config.Helpers) > 0 {
		return Credentials{}, errors.New("credential helpers are not supported; hint: put the login into auths")
	}
	c := Credentials{logins: map[string]Login{}}
	for host, a := range config.Auths {
		login := Login{a.Username, a.Password}
		if a.Auth != "" {
			raw, err := base64.StdEncoding.DecodeString(a.Auth)
			user, password, ok := strings.Cut(string(raw), ":")
			if err != nil || !ok {
				return Credentials{}, fmt.Errorf("the entry of %q does not hold user:password in base64", host)
			}
			login = Login{user, strings.TrimRight(password, "\x00")}
		}
		host = strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://")
		host = strings.TrimSuffix(strings.TrimSuffix(host, "/v1/"), "/")
		c.logins[host] = login
	}
	return c, nil
}

// For returns the login for a repository: the entry of its longest prefix, in
// whole path elements. None is the zero Login.
func (c Credentials) For(name string) Login {
	for {
		if l, ok := c.logins[name]; ok {
			return l
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return Login{}
		}
		name = name[:i]
	}
}
