package vsa

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/internal/launch"
	"assay.dev/assay/store"
)

// KMS are the schemes of key services that are asked for signatures.
var kms = []string{"awskms://", "gcpkms://", "azurekms://", "hashivault://"}

// SignerOptions say how a Signer finds its key. The zero value asks programs beside the
// running one, and the cluster of the usual rules.
type SignerOptions struct {
	// Observer and Assayd are the paths of the programs; empty: beside this one.
	Observer, Assayd string
	// Kubeconfig is a file; empty: the usual rules.
	Kubeconfig string
	// Password is that of an encrypted key file; nil: the environment's COSIGN_PASSWORD.
	Password *string
	// PINFile has the PIN of a PKCS #11 token, unless the URI's pin-source names it.
	PINFile string
	// Warn takes what the signer says while it runs; nil: nobody.
	Warn io.Writer
}

// Signer signs statements with one key through a process of its own. Make one with
// StartSigner and Close it. It is safe for concurrent use.
type Signer struct {
	ref      string
	dir      string
	settings signing.Settings
	client   *signing.Client
	cmd      *exec.Cmd
	lifeline io.Closer
	done     chan struct{}
	said     *tail
}

// StartSigner starts assay-observer signer for a key: the path of a file, cosign's
// encrypted form or PKCS #8; k8s://NAMESPACE/SECRET[/FIELD]; awskms://, gcpkms://,
// azurekms:// or hashivault://; or a pkcs11: URI with its module-path. It fails where
// the key cannot be reached by its form; a wrong password or a refused token is an
// error of the first Sign.
func StartSigner(ctx context.Context, ref string, o SignerOptions) (_ *Signer, err error) {
	s := &Signer{ref: ref, done: make(chan struct{}), said: &tail{also: o.Warn}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("starting the signer of verification summaries: %w", err)
		}
	}()
	if o.Observer == "" {
		if o.Observer, err = launch.Binary("assay-observer"); err != nil {
			return nil, err
		}
	}
	if s.dir, err = os.MkdirTemp("", "assay-vsa-"); err != nil {
		return nil, err
	}
	args, err := s.key(ctx, ref, o)
	if err == nil {
		err = s.start(ctx, o.Observer, args)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	return s, nil
}

// key prepares for the kind of key that ref names, and returns the signer's flags.
func (s *Signer) key(ctx context.Context, ref string, o SignerOptions) ([]string, error) {
	secrets := filepath.Join(s.dir, "secrets")
	if err := os.Mkdir(secrets, 0o700); err != nil {
		return nil, err
	}
	for _, scheme := range kms {
		if strings.HasPrefix(ref, scheme) {
			s.settings = signing.Settings{Kinds: []signing.Kind{signing.KMS}, KMS: signing.KMSSettings{Ref: ref}}
			return nil, nil
		}
	}
	switch {
	case ref == "":
		return nil, errors.New("no key is named")
	case strings.Contains(ref, "-----BEGIN"):
		return nil, errors.New("a private key does not belong on a command line, which others on this machine can read: name a file")
	case strings.HasPrefix(ref, "pkcs11:"):
		s.settings = signing.Settings{Kinds: []signing.Kind{signing.PKCS11}, PKCS11: signing.PKCS11Settings{URI: ref, PINFile: o.PINFile}}
		module, err := modulePath(ref)
		if err != nil {
			return nil, err
		}
		return []string{"--pkcs11-module", module}, nil
	case strings.HasPrefix(ref, "k8s://"):
		if err := unpack(ctx, strings.TrimPrefix(ref, "k8s://"), secrets, o); err != nil {
			return nil, err
		}
	case strings.Contains(ref, "://"):
		return nil, fmt.Errorf("%s: keys of this kind are not known; use a file, k8s://NAMESPACE/SECRET, %s or pkcs11:", ref, strings.Join(kms, ", "))
	default:
		abs, err := filepath.Abs(ref)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(abs); err != nil {
			return nil, fmt.Errorf("finding the key: %w", err)
		}
		// A link: the bytes are the signer's to read.
		if err := os.Symlink(abs, filepath.Join(secrets, "cosign.key")); err != nil {
			return nil, err
		}
	}
	password, given := os.LookupEnv("COSIGN_PASSWORD")
	if o.Password != nil {
		password, given = *o.Password, true
	}
	// What came with the key in a Secret is its password.
	if _, err := os.Stat(filepath.Join(secrets, "cosign.password")); err != nil && given {
		if err := os.WriteFile(filepath.Join(secrets, "cosign.password"), []byte(password), 0o600); err != nil {
			return nil, err
		}
	}
	s.settings = signing.Settings{Kinds: []signing.Kind{signing.X509}}
	return []string{"--secrets", secrets}, nil
}

// modulePath is the library that a PKCS #11 URI names. Whoever names the key on the
// command line names the library too.
func modulePath(uri string) (string, error) {
	_, query, _ := strings.Cut(uri, "?")
	for pair := range strings.SplitSeq(query, "&") {
		if v, ok := strings.CutPrefix(pair, "module-path="); ok {
			return url.PathUnescape(v)
		}
	}
	return "", errors.New("the PKCS #11 URI names no library; add ?module-path=/usr/lib/softhsm/libsofthsm2.so, or that of your token")
}

// unpack has assayd read a Secret and assay-observer put it into a folder. The pipe
// between them is theirs.
func unpack(ctx context.Context, name, folder string, o SignerOptions) (err error) {
	parts := strings.Split(name, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return fmt.Errorf("k8s://%s is no Secret; want k8s://NAMESPACE/SECRET[/FIELD]", name)
	}
	if o.Assayd == "" {
		if o.Assayd, err = launch.Binary("assayd"); err != nil {
			return err
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	args := []string{"object"}
	if o.Kubeconfig != "" {
		args = append(args, "--kubeconfig", o.Kubeconfig)
	}
	read := exec.CommandContext(ctx, o.Assayd, append(args, "--", "secrets", parts[0]+"/"+parts[1])...)
	args = []string{"signer", "unpack", "--into", folder}
	if len(parts) == 3 {
		args = append(args, "--field", parts[2])
	}
	write := exec.CommandContext(ctx, o.Observer, args...)
	var said [2]bytes.Buffer
	read.Stdout, read.Stderr = w, &said[0]
	write.Stdin, write.Stderr = r, &said[1]
	err = read.Start()
	if err == nil {
		if err = write.Start(); err != nil {
			_ = read.Process.Kill()
			_ = read.Wait()
		}
	}
	_, _ = w.Close(), r.Close()
	if err != nil {
		return fmt.Errorf("reading the Secret %s: %w", name, err)
	}
	readErr, writeErr := read.Wait(), write.Wait()
	if readErr != nil {
		return fmt.Errorf("reading the Secret %s: %s", name, words(&said[0], readErr))
	}
	if writeErr != nil {
		return fmt.Errorf("unpacking the Secret %s: %s", name, words(&said[1], writeErr))
	}
	return nil
}

func words(said *bytes.Buffer, err error) string {
	const most = 4 << 10
	if s := strings.TrimSpace(said.String()); s != "" {
		return s[:min(len(s), most)]
	}
	return err.Error()
}

// start starts the process and waits until it serves.
func (s *Signer) start(ctx context.Context, program string, args []string) (err error) {
	socket := filepath.Join(s.dir, "signer.sock")
	s.cmd = exec.Command(program, append([]string{"signer", "--socket", socket, "--lifeline"}, args...)...)
	s.cmd.Stderr = s.said
	// A group of its own: an interrupt at the terminal ends us, and we it.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.lifeline, err = s.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if s.client, err = signing.Dial(socket); err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	ready := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(out).ReadString('\n')
		ready <- err
		_ = s.cmd.Wait()
		close(s.done)
	}()
	select {
	case err = <-ready:
		if errors.Is(err, io.EOF) {
			<-s.done
			err = fmt.Errorf("it ended at once: %s", s.said)
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-time.After(time.Minute):
		err = errors.New("it does not answer")
	}
	if err != nil {
		s.stop()
	}
	return err
}

func (s *Signer) stop() {
	_ = s.lifeline.Close()
	kill := time.AfterFunc(10*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer kill.Stop()
	<-s.done
}

// Sign signs a statement. The envelope has one signature, which is verified before it
// is returned.
func (s *Signer) Sign(ctx context.Context, statement []byte) (*dsse.Envelope, dsse.PublicKey, error) {
	sigs, err := s.client.Sign(ctx, s.settings, dsse.PAE(store.PayloadType, statement))
	if err == nil && len(sigs) != 1 {
		err = fmt.Errorf("%d signatures; want one", len(sigs))
	}
	if err != nil {
		// The signer knows the key by the place that it was given.
		msg := strings.ReplaceAll(err.Error(), filepath.Join(s.dir, "secrets", "cosign.key"), s.ref)
		return nil, dsse.PublicKey{}, fmt.Errorf("signing a verification summary with %s: %s", s.ref, msg)
	}
	env := &dsse.Envelope{PayloadType: store.PayloadType, Payload: statement, Signatures: []dsse.Signature{{KeyID: sigs[0].KeyID, Sig: sigs[0].Sig}}}
	if _, err := env.Verify(1, sigs[0].Key); err != nil {
		return nil, dsse.PublicKey{}, fmt.Errorf("signing a verification summary with %s: %w", s.ref, err)
	}
	return env, sigs[0].Key, nil
}

// Close ends the process and removes its folder.
func (s *Signer) Close() error {
	err := s.client.Close()
	s.stop()
	return errors.Join(err, os.RemoveAll(s.dir))
}

// tail keeps the last of what a program says. The signer's lines are JSON records; of
// them it keeps errors and warnings.
type tail struct {
	mu   sync.Mutex
	also io.Writer
	b    []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 8<<10 {
		t.b = t.b[len(t.b)-8<<10:]
	}
	if t.also != nil {
		for line := range bytes.Lines(p) {
			var rec struct{ Level, Msg, Error string }
			if json.Unmarshal(line, &rec) == nil && rec.Level == "INFO" {
				continue
			}
			_, _ = t.also.Write(line)
		}
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}

// payloadDigest is sha256:… of an envelope's payload.
func payloadDigest(env *dsse.Envelope) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(env.Payload))
}
