// Unsealed stands where mrgc-enclave stands in a cluster, and takes requests in
// clear: what the other costs more is what sealing costs. It is started as
// mrgc-enclave is, has an identity and documents as that has, and sends a request
// through the same relay, over the same mutual TLS, to the same guard. What it
// leaves out is all that there is for confidentiality: it opens no envelope,
// remembers no request, checks no credential and no JSON, wipes nothing, and signs
// no receipt.
//
// Nothing but the benchmark builds it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/vsock"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flags(os.Args[1:])); err != nil {
		fmt.Fprintln(os.Stderr, "unsealed:", err)
		os.Exit(1)
	}
}

// flags are mrgc-enclave's, by name; those that are of no use here are not looked
// at.
func flags(args []string) map[string]string {
	values := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		values[strings.TrimLeft(args[i], "-")] = args[i+1]
	}
	return values
}

func run(ctx context.Context, flag map[string]string) error {
	content, err := os.ReadFile(flag["tenants-key"])
	if err != nil {
		return err
	}
	keys, err := dsse.ParseVerificationKeys(content)
	if err != nil {
		return err
	}
	tenants, err := tenant.NewKeeper(keys...)
	if err != nil {
		return err
	}
	module, err := nsm.Dial(flag["nsm"])
	if err != nil {
		return err
	}
	self, err := identity.Open(ctx, flag["identity"], os.Getenv("MRGC_IDENTITY_TOKEN"))
	if err != nil {
		return err
	}
	t := &twin{engine: engineTransport(self, flag["engine"])}
	service, err := enclave.New(ctx, enclave.Config{
		Model: flag["model"], Region: self.ID().Region, Mode: flag["mode"], NSM: module, Tenants: tenants, Engine: t.engine,
	})
	if err != nil {
		return err
	}
	t.other = service.Handler()
	listener, err := vsock.Listen(flag["listen"])
	if err != nil {
		return err
	}
	server := &http.Server{Handler: t, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// engineTransport is mrgc-enclave's.
func engineTransport(self *identity.Source, address string) http.RoundTripper {
	guard := identity.ID{Region: self.ID().Region, Instance: self.ID().Instance, Role: identity.RoleGuard}
	dial := func(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, address) }
	return &http.Transport{
		DialTLSContext:      self.DialTLS(dial, func(id identity.ID) bool { return id == guard }),
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
	}
}

// twin answers requests itself, and has an enclave answer all else: keys,
// documents, health.
type twin struct {
	engine http.RoundTripper
	other  http.Handler
}

const maxBodyBytes = 8 << 20

func (t *twin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != api.PathSealed {
		t.other.ServeHTTP(w, r)
		return
	}
	if err := t.serve(w, r); err != nil {
		panic(http.ErrAbortHandler) // whoever reads must see a cut, not an end
	}
}

// serve has the engine answer, and passes on what it says as it says it.
func (t *twin) serve(w http.ResponseWriter, r *http.Request) error {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, "https://guard/v1/chat/completions", http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if err != nil {
		return err
	}
	req.ContentLength = r.ContentLength
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(api.HeaderCacheSalt, "unsealed") // there is one tenant
	resp, err := t.engine.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	control, buffer := http.NewResponseController(w), make([]byte, 16<<10)
	for {
		n, err := resp.Body.Read(buffer)
		if _, err := w.Write(buffer[:n]); err != nil {
			return err
		}
		if err := control.Flush(); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
