package enclave

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
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
	story   hostStory                      // guarded by mu
	record  func(api.KeyRelease)           // guarded by mu; tells the parent; nil: nobody
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
	h.tell(host.Name, hex.EncodeToString(key[:]), err)
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

// tell has the parent record what is new. The caller holds mu.
func (h *EngineHost) tell(image, key string, err error) {
	step, reason := h.story.next(image, err, h.now())
	if step == nil || h.record == nil {
		return
	}
	step.Key = key
	h.record(api.KeyRelease{Time: h.now(), Error: reason, Host: step})
}

// recordTo has the parent record what this comes to.
func (h *EngineHost) recordTo(record func(api.KeyRelease)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.record = record
}

// notAttestedError says why there was no document. What it wraps may quote the guard,
// which is nobody that has been trusted with anything.
type notAttestedError struct{ error }

func (e notAttestedError) Error() string {
	return "the engine's host is not attested: " + e.error.Error()
}
func (e notAttestedError) Unwrap() error { return e.error }

// refusalsApart is how long after a refusal that was told another one is, at the
// soonest: a host chooses when it is asked, and what a refusal says.
const refusalsApart = time.Minute

// hostStory is what was told of the engine's host: the first of everything, and then
// what changes.
type hostStory struct {
	told     string    // of the last step; empty: there was none
	trusted  bool      // that step's
	refusal  time.Time // when one was told last
	refusals uint64    // since the last step
}

// next takes what came of asking a host, and gives what is new about it, and of a
// refusal the reason; nil: nothing is. A refusal that comes too soon after another
// is counted in the next step, and told when it is still so later.
func (s *hostStory) next(image string, err error, now time.Time) (step *api.HostStep, reason string) {
	tells := image
	if err != nil {
		s.refusals++
		tells, reason = err.Error(), err.Error()
		if silent := (notAttestedError{}); errors.As(err, &silent) {
			reason = "the engine's host showed no attestation document" // its own words are not recorded
			tells = reason
		}
	}
	trusted := err == nil
	if s.told == tells && s.trusted == trusted {
		return nil, ""
	}
	if !trusted && !s.refusal.IsZero() && now.Sub(s.refusal) < refusalsApart {
		return nil, ""
	}
	if !trusted {
		s.refusal = now
	}
	step = &api.HostStep{Image: image, Refusals: s.refusals}
	s.told, s.trusted, s.refusals = tells, trusted, 0
	return step, reason
}

// vouch has the host say what runs there and that the key is its guard's.
func (h *EngineHost) vouch(publicKey []byte) (attest.Host, error) {
	ctx, cancel := context.WithTimeout(context.Background(), vouchTimeout)
	defer cancel()
	nonce := make([]byte, api.HostNonceBytes)
	rand.Read(nonce) // never fails (crypto/rand)
	document, err := h.ask(ctx, nonce)
	if err != nil {
		return attest.Host{}, notAttestedError{err}
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
