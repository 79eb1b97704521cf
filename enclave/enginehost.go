package enclave

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
)

const (
	vouchTimeout = 30 * time.Second // a TPM takes a second at most
	vouchAgain   = time.Second      // after a failure, so that nobody has a TPM work all the time
	maxVouched   = 16               // keys; a guard has another one after each start
	maxHostBytes = 12 << 10
)

// EngineHost sees to it that the engine's guard runs on a host that its NitroTPM
// measured, before anything is sent there: it is the check of each TLS connection to
// the guard ([EngineHost.VerifyConnection]). A key that was vouched for once stays
// so: the guard's process has made it and gives it to nobody, and what a host has
// booted does not change until its processes end.
type EngineHost struct {
	policy attest.HostPolicy
	dial   func(context.Context) (net.Conn, error)
	log    *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	vouched map[[sha256.Size]byte]struct{} // guarded by mu; keys
	failed  error                          // guarded by mu; why the last key was not
	last    time.Time                      // guarded by mu; when that was
}

// NewEngineHost makes the check. Dial connects to the guard over mutual TLS, without
// it.
func NewEngineHost(policy attest.HostPolicy, dial func(context.Context) (net.Conn, error), log *slog.Logger) (*EngineHost, error) {
	if err := policy.Validate(); err != nil {
		return nil, fmt.Errorf("enclave: hosts of the engine: %w", err)
	}
	return &EngineHost{policy: policy, dial: dial, log: log, now: time.Now, vouched: map[[sha256.Size]byte]struct{}{}}, nil
}

// VerifyConnection refuses a connection whose server's key the host does not vouch
// for. It asks by another connection: where the document comes from says nothing.
func (h *EngineHost) VerifyConnection(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the engine's guard showed no certificate")
	}
	publicKey := cs.PeerCertificates[0].RawSubjectPublicKeyInfo
	key := sha256.Sum256(publicKey)
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.vouched[key]; ok {
		return nil
	}
	if h.failed != nil && h.now().Sub(h.last) < vouchAgain {
		return h.failed
	}
	host, err := h.vouch(publicKey)
	h.last, h.failed = h.now(), err
	if err != nil {
		h.log.Error("THE ENGINE'S HOST IS NOT TRUSTED", "error", err)
		return err
	}
	if len(h.vouched) >= maxVouched {
		clear(h.vouched)
	}
	h.vouched[key] = struct{}{}
	h.log.Info("the engine's host is trusted", "image", host.Name)
	return nil
}

// vouch has the host say what runs there and that the key is its guard's.
func (h *EngineHost) vouch(publicKey []byte) (attest.Host, error) {
	ctx, cancel := context.WithTimeout(context.Background(), vouchTimeout)
	defer cancel()
	nonce := make([]byte, api.HostNonceBytes)
	rand.Read(nonce) // never fails (crypto/rand)
	document, err := h.ask(ctx, nonce)
	if err != nil {
		return attest.Host{}, fmt.Errorf("the engine's host is not attested: %w", err)
	}
	return attest.VerifyHost(document, h.policy, attest.Expected{UserData: attest.VouchedKey(publicKey), Nonce: nonce}, h.now())
}

func (h *EngineHost) ask(ctx context.Context, nonce []byte) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DialTLSContext:    func(ctx context.Context, _, _ string) (net.Conn, error) { return h.dial(ctx) },
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://guard"+api.PathHostAttestation, bytes.NewReader(nonce))
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHostBytes+1))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the guard answers %d: %.200q", resp.StatusCode, body)
	case len(body) > maxHostBytes:
		return nil, fmt.Errorf("the document has more than %d bytes", maxHostBytes)
	}
	return body, nil
}
