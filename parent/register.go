package parent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
)

// pathRecipients is where the enclave serves its recipients, and where the
// parent serves them to routers.
const pathRecipients = "/recipients"

// Bounds on what a probe waits for and reads.
const (
	probeTimeout       = 3 * time.Second
	maxRecipientsBytes = 256 << 10
	maxMetricsBytes    = 1 << 20
)

// observation is what one round of probes found.
type observation struct {
	health fleet.Health
	load   fleet.Load
	usage  map[string]fleet.Usage
	keyIDs []string
}

// known is what the fleet knows of the enclave's keys.
type known struct {
	keyIDs []string
	since  time.Time // not before this
}

// register keeps the instance registered until ctx ends: it probes the parts,
// registers when the enclave's keys change, and sends a heartbeat at each
// interval and at once when health changes. It never gives up on the store.
func (p *Parent) register(ctx context.Context) {
	ticker := time.NewTicker(p.config.ProbeInterval)
	defer ticker.Stop()
	var (
		last         observation
		registered   bool
		lastReported time.Time
	)
	for {
		_, _, newTenants := p.config.Tenants.Held()
		seen := p.probe(ctx)
		if ctx.Err() != nil {
			return // what a probe that was broken off has seen says nothing
		}
		changed := !slices.Equal(seen.keyIDs, last.keyIDs) || seen.health != last.health
		due := time.Since(lastReported) >= p.settings.Load().HeartbeatInterval
		if changed {
			p.log.Info("instance", "healthy", seen.health.OK(), "reason", seen.health.Reason)
		}
		if changed || due {
			began := time.Now()
			err := p.report(ctx, seen, !registered || !slices.Equal(seen.keyIDs, last.keyIDs))
			switch {
			case err == nil:
				if !registered || !slices.Equal(seen.keyIDs, last.keyIDs) {
					p.known.Store(&known{keyIDs: seen.keyIDs, since: began})
				}
				registered, last, lastReported = true, seen, time.Now()
				p.untold.Store(false)
			case ctx.Err() == nil:
				p.untold.Store(true)
				registered = false // whatever the store holds, write all of it next time
				p.log.Warn("could not report to the fleet store; trying again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-p.probeAgain:
		case <-newTenants:
		}
	}
}

// probeNow has register look at the parts before the next tick.
func (p *Parent) probeNow() {
	select {
	case p.probeAgain <- struct{}{}:
	default: // it is about to
	}
}

// report writes an observation to the store.
func (p *Parent) report(ctx context.Context, seen observation, whole bool) error {
	if !whole {
		err := p.config.Store.Heartbeat(ctx, fleet.Heartbeat{ID: p.config.Instance.ID, Health: seen.health, Load: seen.load, Usage: seen.usage})
		if !errors.Is(err, fleet.ErrNotFound) {
			return err
		}
	}
	instance := p.config.Instance
	instance.Versions = p.versions()
	instance.Health, instance.Load, instance.Usage, instance.KeyIDs = seen.health, seen.load, seen.usage, seen.keyIDs
	return p.config.Store.Register(ctx, instance)
}

// versions are those that are known of the instance's models.
func (p *Parent) versions() map[string]string {
	known := map[string]string{}
	for _, model := range p.config.Instance.Models {
		if v := p.config.ModelVersions[model]; v != "" {
			known[model] = v
		}
	}
	return known
}

// probe asks enclave, guard and GPUs how they are, and what was seen of the model's
// files.
func (p *Parent) probe(ctx context.Context) observation {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var (
		seen observation
		why  []string
	)
	present, _ := p.enclaves.now()
	_, err := p.supply(ctx, present)
	if seen.health.Enclave = err == nil; seen.health.Enclave {
		seen.keyIDs = *present.keyIDs.Load()
	} else {
		why = append(why, fmt.Sprintf("enclave: %v", err))
	}
	p.metrics.part(partEnclave, seen.health.Enclave)
	if quarantined := p.washer.quarantined(); quarantined != "" {
		seen.health.Enclave, why = false, []string{"quarantined: " + quarantined}
	}
	if p.washer.now().Aside() {
		// Without its keys, what is sealed to this instance alone is sealed anew.
		seen.health.Enclave, seen.keyIDs, why = false, nil, append([]string{"washing: its engine is being restarted"}, why...)
	}
	_, err = get(ctx, p.guard, "https://guard/health", maxMetricsBytes)
	if seen.health.Engine = err == nil; !seen.health.Engine {
		why = append(why, fmt.Sprintf("engine: %v", err))
	}
	p.metrics.part(partEngine, seen.health.Engine)
	seen.load, seen.usage = p.engineLoad(ctx), p.load.usage() // the first reads the GPUs, too
	if p.config.ReadGPU != nil {
		fault, lost := p.gauges.fault()
		if lost {
			seen.health.Engine = false
			why = append(why, "GPU: "+fault)
		}
		p.metrics.part(partGPU, fault == "")
	}
	if p.config.ModelFiles != nil {
		fault := p.files.get()
		if fault != "" {
			why = append(why, "model's files: "+fault)
		}
		p.metrics.part(partModelFiles, fault == "")
	}
	seen.health.Reason = strings.Join(why, "; ")
	return seen
}

// supply gives an enclave what it needs to serve, and sees its recipients.
func (p *Parent) supply(ctx context.Context, to *held) (api.Recipients, error) {
	recipients, err := p.recipients(ctx, to)
	if err == nil {
		err = p.handTenants(ctx, to)
	}
	if err == nil {
		err = p.tellEnclave(ctx, to)
	}
	var keyIDs []string
	if err == nil {
		for _, recipient := range recipients.Recipients {
			hash := sha256.Sum256(recipient.Claims)
			keyIDs = append(keyIDs, hex.EncodeToString(hash[:8]))
		}
	}
	if ctx.Err() == nil || err == nil { // a probe that was broken off has seen nothing
		to.keyIDs.Store(&keyIDs)
	}
	return recipients, err
}

// handTenants hands the enclave the signed list of tenants, unless it has that
// one: after its start, and when there is a new one.
func (p *Parent) handTenants(ctx context.Context, to *held) error {
	set, file, _ := p.config.Tenants.Held()
	body, err := get(ctx, to.client, "http://enclave"+api.PathTenants, 1<<10)
	if err != nil {
		return err
	}
	var holds api.Tenants
	if err := json.Unmarshal(body, &holds); err != nil {
		return fmt.Errorf("tenants: %w", err)
	}
	if set.Version() <= holds.Version {
		return nil
	}
	return to.put(ctx, api.PathTenants, "list of tenants", file)
}

// tellEnclave says what receipts repeat of this instance. An enclave of a release
// that signs none does not want it.
func (p *Parent) tellEnclave(ctx context.Context, to *held) error {
	host := api.Host{}
	host.WashID, host.WashEndedAt = p.washer.last()
	if models := p.config.Instance.Models; len(models) > 0 {
		host.ModelVersion = p.config.ModelVersions[models[0]]
	}
	content, err := json.Marshal(host)
	if err != nil {
		return err
	}
	err = to.put(ctx, api.PathHost, "host's statement", content)
	var refused *api.Error
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil
	}
	return err
}

// engineLoad is what the engine's metrics say; of an engine without metrics, or
// one that does not answer, it is what this parent has under way.
func (p *Parent) engineLoad(ctx context.Context) fleet.Load {
	own := p.load.read()
	seen := fleet.Load{Running: own.running, Slots: p.config.EngineSlots, Latency: own.latency, Requests: int64(own.ended) + int64(own.running)} //nolint:gosec // counted one by one
	if engine := p.measure(ctx).engine; engine != nil {
		seen.Running, seen.Queued = engine.Running, engine.Queued
	}
	return seen
}

// recipients asks the enclave for its claims and attestation documents.
func (p *Parent) recipients(ctx context.Context, of *held) (api.Recipients, error) {
	body, err := get(ctx, of.client, "http://enclave"+pathRecipients, maxRecipientsBytes)
	if err != nil {
		return api.Recipients{}, err
	}
	var recipients api.Recipients
	if err := json.Unmarshal(body, &recipients); err != nil {
		return api.Recipients{}, fmt.Errorf("recipients: %w", err)
	}
	if len(recipients.Recipients) == 0 {
		return api.Recipients{}, errors.New("recipients: none")
	}
	return recipients, nil
}

func get(ctx context.Context, client *http.Client, url string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, limit))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d", req.URL.Path, resp.StatusCode)
	}
	return body, nil
}

// serveRecipients passes the enclave's recipients to routers.
func (p *Parent) serveRecipients(w http.ResponseWriter, r *http.Request) {
	present, _ := p.enclaves.now()
	recipients, err := p.recipients(r.Context(), present)
	if err != nil {
		p.log.Warn("no recipients", "error", err)
		api.Errorf(http.StatusServiceUnavailable, "enclave_unreachable", "the instance's enclave does not answer").Write(w)
		return
	}
	if peer, _ := identity.Peer(r.TLS); peer.Role == identity.RoleRouter {
		present.shown.Store(time.Now().UnixNano())
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(recipients) // a router that has gone asks again
}

// serveKeys answers tenants in the routers' place, as Envoy asks while no
// router does: with the one instance that this parent knows the keys of.
func (p *Parent) serveKeys(w http.ResponseWriter, r *http.Request) {
	rules, err := p.config.Tenants.Set().AdmitRequest(r.Header.Values(api.HeaderTenant), r.Header.Values("Authorization"), r.Header.Values(api.HeaderTenantSAN), time.Now())
	if err != nil {
		api.Errorf(http.StatusUnauthorized, "invalid_api_key", "the API key is not one of this cluster's").Write(w)
		return
	}
	model := r.URL.Query().Get("model")
	if !slices.Contains(p.config.Instance.Models, model) || !rules.Models.Allow(model) || !p.mayServe(r, rules) {
		// Whether the model exists at all is the routers' to know, and an instance
		// where the tenant's data may be is Envoy's to find.
		api.Errorf(http.StatusServiceUnavailable, "no_instance_ready", "no instance of the model was found; try again").Write(w)
		return
	}
	if p.takesNone() {
		api.Errorf(http.StatusServiceUnavailable, "no_instance_ready", "this instance takes no requests; try again").Write(w)
		return
	}
	p.serveRecipients(w, r)
}

// takesNone says whether nobody is to seal to this instance: in quarantine, aside for a
// wash, or drained while others of the fleet, as it was last seen, are ready.
func (p *Parent) takesNone() bool {
	if p.washer.quarantined() != "" || p.washer.now().Aside() {
		return true
	}
	snapshot := p.view.Load()
	return snapshot != nil && len(snapshot.Ready(p.settings.Load().StaleAfter)) > 0 &&
		slices.ContainsFunc(snapshot.Instances, func(in *fleet.Instance) bool { return in.ID == p.config.Instance.ID && in.Draining })
}

// serveHealth answers Envoy's active health check: is the enclave there? The
// engine's health reaches the routers by heartbeat; an instance whose engine is
// starting must not be taken for one that is gone.
func (p *Parent) serveHealth(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
	defer cancel()
	present, _ := p.enclaves.now()
	if _, err := get(ctx, present.client, "http://enclave/healthz", 1<<10); err != nil || p.washer.quarantined() != "" || p.washer.now().Aside() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}
