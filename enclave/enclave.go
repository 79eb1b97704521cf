// Package enclave is the service inside the Nitro Enclave: the only place in
// the cluster where a tenant's request is in clear, beside the engine.
//
// It makes a key at its start and has the Nitro Security Module attest it
// (served as /recipients); as one of a [Fleet] it holds keys together with others,
// too. A request that arrives is opened, checked and recorded
// against replay; its JSON is written anew and sent to the engine's guard over
// the enclave's own mutual TLS, with a salt that keeps its prompt from being found
// in the engine's cache by anybody else; the answer is sealed chunk by chunk as it
// comes.
//
// What surrounds the enclave is hostile to it: limits hold before any work is
// done, everything that cannot be opened gets one and the same answer, and
// nothing of a request is ever logged.
//
// The package is part of the measured image. It imports the protocol, the
// attestation client and little else; a test of cmd/mrgc-enclave keeps it so.
package enclave

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/kms"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/tenant"
)

// Config says whom the enclave serves and through what. Every field without a
// default is required.
type Config struct {
	Model          string
	ManifestSHA256 [32]byte // of the model's manifest; zero: none
	Region         string
	Mode           string // one of seal's Mode constants: what protects the plaintext

	NSM     nsm.Module
	Tenants *tenant.Keeper    // holds the list of tenants; whoever brings it is trusted with nothing
	Engine  http.RoundTripper // reaches the engine's guard over mutual TLS
	// EngineHost is Engine's check of the host, where it has one: what it comes to is told
	// to the parent. nil: no host is checked.
	EngineHost *EngineHost
	KMS        *kms.Client // decrypts tenants' data keys; nil: requests by these are refused
	Fleet      *Fleet      // whose keys are held, too, which takes a KMS; nil: none

	RequestBodyBytes   int64         // sealed size; default 8 MiB. Of so many eight times are held at once
	RequestLifetime    time.Duration // how far ahead an expiry may lie; default [seal.MaxLifetime]
	ConcurrentRequests int           // default 64: bounds what is held in clear at once
	ReplayCapacity     int           // requests remembered until they expire; default 1,000,000
	// AnswerWait is how long an event of a stream waits at most for others to be sealed
	// with, [DefaultAnswerWait] by default of mrgc-enclave; 0: none waits, and sealing
	// twice or thrice the bytes of a stream.
	AnswerWait time.Duration
	// CleanWithin is how long copies that a request left in the memory of libraries
	// may stay after its end, about; 0: until other things need the memory.
	CleanWithin time.Duration

	// DocumentTime is when a document of NSM's was made, by its own clock; default
	// [attest.ClaimedTime].
	DocumentTime func(document []byte) (time.Time, error)

	Now    func() time.Time // default: time.Now
	Rand   io.Reader        // default: crypto/rand
	Logger *slog.Logger     // default: none
}

// Enclave is the service. It is made by New.
type Enclave struct {
	config  Config
	keys    *keyring
	replays *seal.ReplaySet
	failed  failures
	slots   chan struct{}
	bytes   heldBytes

	salts    saltSecret
	releases keyReleases // of data keys, by KMS, and what came of the engine's host
	fleet    *fleetKeys  // nil: of no fleet
	host     hostSays
	cleaner  *cleaner
}

// New checks the configuration, makes the first key and has it attested.
func New(ctx context.Context, config Config) (*Enclave, error) {
	config.RequestBodyBytes = cmp.Or(config.RequestBodyBytes, 8<<20)
	config.RequestLifetime = cmp.Or(config.RequestLifetime, seal.MaxLifetime)
	config.ConcurrentRequests = cmp.Or(config.ConcurrentRequests, 64)
	config.ReplayCapacity = cmp.Or(config.ReplayCapacity, 1_000_000)
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.DocumentTime == nil {
		config.DocumentTime = attest.ClaimedTime
	}
	if config.Rand == nil {
		config.Rand = rand.Reader
	}
	switch {
	case config.NSM == nil:
		return nil, errors.New("enclave: no security module")
	case config.Engine == nil:
		return nil, errors.New("enclave: no way to reach the engine")
	case config.RequestBodyBytes < 0 || config.ConcurrentRequests < 0 || config.AnswerWait < 0:
		return nil, errors.New("enclave: a limit is negative")
	case config.Tenants == nil:
		return nil, errors.New("enclave: no key that verifies tenants, nobody could be served")
	}
	if config.Fleet != nil {
		fleet := *config.Fleet
		fleet.EpochLength = cmp.Or(fleet.EpochLength, defaultEpochLength)
		config.Fleet = &fleet
		if err := fleet.check(); err != nil {
			return nil, err
		}
		if config.KMS == nil {
			return nil, errors.New("enclave: a fleet's seeds come from KMS, which is not asked")
		}
	}
	e := &Enclave{
		config:  config,
		keys:    newKeyring(&config),
		replays: seal.NewReplaySet(config.ReplayCapacity),
		slots:   make(chan struct{}, config.ConcurrentRequests),
		bytes:   heldBytes{limit: heldAtOnce * config.RequestBodyBytes},
		cleaner: newCleaner(&config),
	}
	if config.EngineHost != nil {
		config.EngineHost.recordTo(e.releases.add)
	}
	var err error
	if e.salts, err = newSaltSecret(config.Rand); err != nil {
		return nil, err
	}
	if config.Fleet != nil {
		e.fleet = newFleetKeys(e)
		e.keys.fleet = e.fleet.held
	}
	if _, err := e.keys.recipients(ctx, config.Now()); err != nil {
		return nil, err
	}
	return e, nil
}

// Serve answers on listener until ctx ends, then cuts what is under way: the
// parent drains before it stops an enclave.
func (e *Enclave) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           e.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // would quote requests
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	beside, stopBeside := context.WithCancel(ctx)
	var done sync.WaitGroup
	defer done.Wait()
	defer stopBeside()
	if e.config.CleanWithin > 0 {
		done.Go(func() { e.cleaner.run(beside) })
	}
	if e.fleet != nil {
		done.Go(func() { e.fleet.run(beside) })
	}
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Handler serves the enclave's port to the parent.
func (e *Enclave) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathSealed, e.serveSealed)
	mux.HandleFunc("GET /recipients", e.serveRecipients)
	mux.HandleFunc("GET "+api.PathTenants, e.serveTenants)
	mux.HandleFunc("PUT "+api.PathTenants, e.takeTenants)
	mux.HandleFunc("PUT "+api.PathHost, e.takeHost)
	if e.config.KMS != nil {
		mux.HandleFunc("GET "+api.PathAWSCredentials, e.serveCredentials)
		mux.HandleFunc("PUT "+api.PathAWSCredentials, e.takeCredentials)
	}
	if e.config.KMS != nil || e.config.EngineHost != nil {
		mux.HandleFunc("GET "+api.PathKeyReleases, e.serveKeyReleases)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	return mux
}

// maxTenantsBytes bounds what is read of a list before its signature is.
const maxTenantsBytes = 64 << 20

// serveTenants says which list is held.
func (e *Enclave) serveTenants(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(api.Tenants{Version: e.config.Tenants.Set().Version()}) // the parent asks again
}

// takeTenants takes a list of tenants from the parent: what the signature says,
// and nothing that the parent says.
func (e *Enclave) takeTenants(w http.ResponseWriter, r *http.Request) {
	file, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTenantsBytes))
	if err == nil {
		err = e.config.Tenants.Offer(file, e.config.Now())
	}
	if err != nil {
		e.config.Logger.Error("a list of tenants is refused", "error", err)
		api.Errorf(http.StatusConflict, "tenants_refused", "%v", err).Write(w)
		return
	}
	held := e.config.Tenants.Set()
	e.config.Logger.Info("list of tenants", "version", held.Version(), "expires", held.Expires())
	w.WriteHeader(http.StatusNoContent)
}

// serveRecipients gives claims and attestation documents, newest key first.
func (e *Enclave) serveRecipients(w http.ResponseWriter, r *http.Request) {
	recipients, err := e.keys.recipients(r.Context(), e.config.Now())
	if err != nil {
		e.config.Logger.Error("no attestation document", "error", err)
		api.Errorf(http.StatusServiceUnavailable, "attestation_failed", "there is no fresh attestation document").Write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(api.Recipients{Recipients: recipients}) // the parent asks again
}
