// Package globaltables stands for DynamoDB global tables on one machine, where
// DynamoDB Local knows no replicas. Each region has a DynamoDB Local of its own and,
// in front of it, a [Region]: its endpoint for the AWS SDK.
//
//	r, err := globaltables.Open(globaltables.Config{Region: "us-east-1", Near: near, Strong: strong, Peers: peers, …})
//	if err != nil { … }
//	go r.Run(ctx)           // replicates
//	http.Serve(listener, r) // is what DynamoDB's endpoint is
//
// Which table is consistent how is what internal/state/schema says.
//
// Eventually consistent tables lie in the region's own DynamoDB Local. A Region reads
// their streams and brings each item that was written here to the other regions, in
// order and as often as it takes. Of two regions' writes of an item the later wins,
// everywhere: by the clocks of the regions, which never fall behind a version that they
// have seen, and by name at the same microsecond. So regions agree once they can hear
// each other again. What was brought here is not sent on.
//
// Strongly consistent tables (MRSC) lie in one further DynamoDB Local for all regions,
// which stands for what their replicas agree on: it is no region's, and goes on when one
// dies. A region whose own DynamoDB Local is gone, or that hears of no other region's,
// has no majority, and neither reads nor writes them.
//
// Not here: ReplicatedWriteConflictException, PartiQL, witness regions, removal of
// replicas, and a change of time to live after a table has its replicas. ListTables
// lists the region's own.
//
// Faults can be asked for: a PUT of [Faults] as JSON to /faults.
package globaltables

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/state/schema"
)

// Config says which region this is, and where all parts are.
type Config struct {
	Region string            // AWS's name
	Near   string            // URL of its DynamoDB Local
	Strong string            // URL of the one that all regions use for strongly consistent tables
	Peers  map[string]string // URLs of the other regions' Regions, by AWS's names
	Prefix string            // of the tables' names
	Dir    string            // holds what outlives the process: versions of items, and which table has which replicas
	Logger *slog.Logger      // nil: nothing is logged
}

// Faults are what a test may want to go wrong.
type Faults struct {
	LagMS int64    `json:"lag_ms"` // for how long each change waits before it is sent to the others
	Cut   []string `json:"cut"`    // regions that this one neither hears nor is heard by
}

// Region is one region's endpoint.
type Region struct {
	cfg    Config
	log    *slog.Logger
	tables map[string]schema.Table
	near   *database
	strong *database
	peers  map[string]*peer
	http   *http.Client // to peers

	mu      sync.Mutex // held over a write and its version
	journal *journal   // guarded by mu

	health *health

	faultsMu sync.Mutex
	faults   Faults // guarded by faultsMu
}

// How a region speaks to others.
const (
	peerTimeout = time.Second
	bodyLimit   = 16 << 20 // of DynamoDB's largest request, BatchWriteItem
)

// Open prepares a region, without a request to anyone.
func Open(cfg Config) (*Region, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Region{
		cfg: cfg, log: cfg.Logger, tables: map[string]schema.Table{}, peers: map[string]*peer{},
		near: newDatabase(cfg.Near, cfg.Region), strong: newDatabase(cfg.Strong, "us-east-1"),
		http: &http.Client{Transport: &http.Transport{}, Timeout: peerTimeout},
	}
	for _, table := range schema.Tables(cfg.Prefix) {
		r.tables[table.Name] = table
	}
	var err error
	if r.journal, err = openJournal(cfg.Dir); err != nil {
		return nil, fmt.Errorf("global tables in %s: %w", cfg.Region, err)
	}
	for name, url := range cfg.Peers {
		r.peers[name] = newPeer(name, url)
	}
	r.health = newHealth(r)
	return r, nil
}

// Run replicates, and watches whom it hears, until ctx ends; then it gives everything
// back.
func (r *Region) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, table := range r.tables {
		if table.Stream {
			running.Go(func() { r.follow(ctx, table) })
		}
	}
	for _, p := range r.peers {
		running.Go(func() { r.send(ctx, p) })
	}
	running.Go(func() { r.health.run(ctx) })
	running.Wait()
	for _, client := range []*http.Client{r.http, r.near.http, r.strong.http} {
		client.CloseIdleConnections()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.journal.close()
}

// ServeHTTP answers the SDK as DynamoDB does; other regions; and who asks for faults.
func (r *Region) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, bodyLimit))
	if err != nil {
		refuse(w, errors.New("the request is too long, or broke off"))
		return
	}
	switch req.Method + " " + req.URL.Path {
	case "POST /":
		r.serveDynamoDB(w, req, body)
	case "GET /health":
		r.health.serve(w, req)
	case "POST " + changesPath:
		r.fromPeer(w, req, body, r.apply)
	case "POST " + replicaPath:
		r.fromPeer(w, req, body, r.makeReplica)
	case "PUT /faults":
		r.serveFaults(w, body)
	default:
		http.NotFound(w, req)
	}
}

func (r *Region) serveFaults(w http.ResponseWriter, body []byte) {
	var faults Faults
	if err := json.Unmarshal(body, &faults); err != nil || faults.LagMS < 0 {
		http.Error(w, "want {\"lag_ms\": N, \"cut\": [REGION…]}", http.StatusBadRequest)
		return
	}
	r.faultsMu.Lock()
	defer r.faultsMu.Unlock()
	r.faults = faults
}

func (r *Region) lag() time.Duration {
	r.faultsMu.Lock()
	defer r.faultsMu.Unlock()
	return time.Duration(r.faults.LagMS) * time.Millisecond
}

func (r *Region) isCut(from string) bool {
	r.faultsMu.Lock()
	defer r.faultsMu.Unlock()
	return slices.Contains(r.faults.Cut, from)
}

// fromHeader names the region that speaks to another.
const fromHeader = "X-Global-Tables-From"

// fromPeer does what another region asks for, unless the path from there is cut.
func (r *Region) fromPeer(w http.ResponseWriter, req *http.Request, body []byte, do func(context.Context, []byte) error) {
	from := req.Header.Get(fromHeader)
	if r.peers[from] == nil || r.isCut(from) {
		http.Error(w, "no way from "+from, http.StatusBadGateway)
		return
	}
	if err := do(req.Context(), body); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// toPeer has another region do something.
func (r *Region) toPeer(ctx context.Context, p *peer, path string, what any) error {
	if r.isCut(p.region) {
		return fmt.Errorf("no way to %s", p.region)
	}
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set(fromHeader, r.cfg.Region)
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d: %s", p.region, resp.StatusCode, said)
	}
	return err
}
