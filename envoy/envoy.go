// Package envoy starts the pinned Envoy: it writes the bootstrap, has Envoy
// check it, and gives the command line.
//
// The bootstrap holds what an Envoy must know before it can ask: who it is,
// where its region's routers are, and the files of its own certificate. All
// else (listeners, routes, clusters, endpoints, the tenants' certificate) comes
// from package xds over delta ADS, and refers to the four static names below.
//
//	config, err := envoy.Bootstrap(envoy.Config{...})
//	os.WriteFile(path, config, 0o600)
//	err = envoy.Validate(ctx, binary, path)
//	cmd := envoy.Command(binary, path)
//
// The package never downloads Envoy, never restarts it, and never puts a
// private key into the bootstrap: keys stay in the files that it names.
package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Version is the Envoy release that the bootstrap and package xds are tested
// against.
const Version = "1.40.0"

// Names of the bootstrap's static objects, to which xDS resources refer.
const (
	// ClusterRouter is the routers' gRPC port: ADS, ext_proc and access log.
	ClusterRouter = "router"
	// ClusterRouterHTTP is the routers' HTTPS port: recipients and models.
	ClusterRouterHTTP = "router-http"
	// SecretIdentity is Envoy's own certificate and key.
	SecretIdentity = "identity"
	// SecretTrust is the CA that signs the names of all parts.
	SecretTrust = "trust"
)

// Config is what one Envoy is told at its start.
type Config struct {
	// NodeID names this Envoy in the xDS server's status. Required, and unique
	// within the region.
	NodeID string
	// Region is where this Envoy stands; it decides which resources it is sent
	// and the name its routers must prove. Required.
	Region fleet.Region
	// Zone is the availability zone, for people; may be empty.
	Zone string

	// Admin is where Envoy's admin interface listens. It can stop Envoy and
	// dump its configuration, so it must be a loopback address. Required.
	Admin netip.AddrPort
	// RouterGRPC and RouterHTTP are the addresses of the region's routers, the
	// preferred one, which runs beside this Envoy, first: the others are used while
	// it fails or hangs. At least one of each is required.
	RouterGRPC []netip.AddrPort
	RouterHTTP []netip.AddrPort

	// CertificateFile, KeyFile and TrustFile are PEM files: Envoy's own
	// certificate chain, its key, and the CA. They are read once, at the start.
	// Required.
	CertificateFile string
	KeyFile         string
	TrustFile       string

	// MaxConnections is how many tenant connections are accepted at once;
	// default 20,000.
	MaxConnections int64
	// MaxHeapBytes is the heap at whose 98 % new requests are refused; default
	// 1 GiB.
	MaxHeapBytes uint64
}

func (c Config) withDefaults() Config {
	if c.MaxConnections == 0 {
		c.MaxConnections = 20_000
	}
	if c.MaxHeapBytes == 0 {
		c.MaxHeapBytes = 1 << 30
	}
	return c
}

func (c Config) check() error {
	for _, field := range []struct{ name, value string }{
		{"NodeID", c.NodeID},
		{"Region", string(c.Region)},
		{"CertificateFile", c.CertificateFile},
		{"KeyFile", c.KeyFile},
		{"TrustFile", c.TrustFile},
	} {
		if field.value == "" {
			return fmt.Errorf("envoy config: %s is empty", field.name)
		}
	}
	if !c.Admin.IsValid() || !c.Admin.Addr().IsLoopback() {
		return fmt.Errorf("envoy config: Admin %s is not a loopback address; the admin interface can stop Envoy and must not be reachable from outside", c.Admin)
	}
	if c.MaxConnections < 0 {
		return errors.New("envoy config: MaxConnections is negative")
	}
	return errors.Join(checkAddresses("RouterGRPC", c.RouterGRPC), checkAddresses("RouterHTTP", c.RouterHTTP))
}

func checkAddresses(name string, addresses []netip.AddrPort) error {
	if len(addresses) == 0 {
		return fmt.Errorf("envoy config: %s has no address", name)
	}
	for _, a := range addresses {
		if !a.IsValid() || a.Port() == 0 {
			return fmt.Errorf("envoy config: %s has an address without IP or port: %s", name, a)
		}
	}
	return nil
}

// Validate has the binary check a bootstrap file. The error carries Envoy's own
// message. It says nothing about what xDS will send.
func Validate(ctx context.Context, binary, bootstrapPath string) error {
	cmd := exec.CommandContext(ctx, binary, "--mode", "validate", "-c", bootstrapPath, "--disable-hot-restart", "-l", "error") //nolint:gosec // the caller's own binary
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("validate %s: %w", bootstrapPath, ctx.Err())
	}
	if message := strings.TrimSpace(out.String()); message != "" {
		return fmt.Errorf("envoy refuses %s: %w: %s", bootstrapPath, err, message)
	}
	return fmt.Errorf("run envoy to validate %s: %w", bootstrapPath, err)
}

// Command is the command line that runs Envoy in the foreground, with warnings
// on stderr. The caller starts and stops it; SIGTERM ends it at once, and
// POST /drain_listeners?graceful on the admin address drains it before.
//
// Hot restart is off, so that several Envoys share a machine without sharing
// memory. ext_proc logs errors alone: a picker that is away would otherwise be
// one warning per request, for something that costs nothing.
func Command(binary, bootstrapPath string, extra ...string) *exec.Cmd {
	args := append([]string{
		"-c", bootstrapPath,
		"--concurrency", "1",
		"--disable-hot-restart",
		"-l", "warning",
		"--component-log-level", "ext_proc:error",
	}, extra...)
	cmd := exec.Command(binary, args...) //nolint:gosec // the caller's own binary
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd
}
