package parent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/audit"
)

// maxKeyReleasesBytes is above what an enclave keeps.
const maxKeyReleasesBytes = 4 << 20

// recordKeyReleases writes what the enclave says of data keys, and of its engine's
// host, to the audit log, until ctx ends, and then what is left.
func (p *Parent) recordKeyReleases(ctx context.Context) {
	ticker := time.NewTicker(p.config.ProbeInterval)
	defer ticker.Stop()
	for {
		present, _ := p.enclaves.now()
		p.recordReleasesOf(ctx, present)
		select {
		case <-ctx.Done():
			present, _ := p.enclaves.now()
			p.recordReleasesOf(context.WithoutCancel(ctx), present)
			p.recordReleasesOf(context.WithoutCancel(ctx), present) // which tells the enclave that we have them
			return
		case <-ticker.C:
		}
	}
}

// releaseCursor is up to where an enclave's data keys are recorded.
type releaseCursor struct {
	mu      sync.Mutex
	enclave string // guarded by mu: its name for itself
	last    uint64 // guarded by mu
}

// recordReleasesOf writes down what one enclave says that is not yet.
func (p *Parent) recordReleasesOf(ctx context.Context, of *held) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	at := &of.releases
	at.mu.Lock()
	defer at.mu.Unlock()
	said, err := of.keyReleases(ctx, at.enclave, at.last)
	if err != nil {
		return // register says what is wrong with the enclave
	}
	if said.Enclave != at.enclave {
		at.enclave, at.last = said.Enclave, 0
	}
	if len(said.Releases) == 0 {
		return
	}
	if p.config.Audit != nil {
		if err := p.config.Audit.Append(time.Now(), p.auditEvents(said)...); err != nil {
			p.log.Error("AUDIT LOG FAILS", "error", err)
			return
		}
	}
	p.metrics.keyReleases(said.Releases)
	at.last = said.Releases[len(said.Releases)-1].Sequence
}

func (h *held) keyReleases(ctx context.Context, enclave string, after uint64) (said api.KeyReleases, err error) {
	query := url.Values{"enclave": {enclave}, "after": {strconv.FormatUint(after, 10)}}
	body, err := get(ctx, h.client, "http://enclave"+api.PathKeyReleases+"?"+query.Encode(), maxKeyReleasesBytes)
	if err != nil {
		return said, err
	}
	return said, json.Unmarshal(body, &said)
}

func (p *Parent) auditEvents(said api.KeyReleases) (events []audit.Event) {
	if said.Lost > 0 {
		events = append(events, audit.Event{Name: audit.RecordsLost, About: map[string]string{
			"instance": p.config.Instance.ID, "count": fmt.Sprint(said.Lost),
		}})
	}
	for _, r := range said.Releases {
		switch {
		case r.Fleet != nil:
			events = append(events, p.fleetEvent(r))
			continue
		case r.Host != nil:
			events = append(events, p.hostEvent(r))
			continue
		}
		about := map[string]string{
			"instance": p.config.Instance.ID, "request": r.RequestID, "tenant": r.Tenant, "at": r.Time.UTC().Format(time.RFC3339Nano),
		}
		if r.Took > 0 { // enclaves of before do not say
			about["took_seconds"] = strconv.FormatFloat(r.Took.Seconds(), 'f', 4, 64)
		}
		name := audit.KeyReleased
		if r.Error != "" {
			name, about["error"] = audit.KeyRefused, r.Error
		}
		events = append(events, audit.Event{Name: name, About: about})
	}
	return events
}

// fleetSteps are the audit log's names of what an enclave says of a fleet's key.
var fleetSteps = map[string]string{
	api.FleetSeedMade: audit.FleetSeedMade, api.FleetSeedReleased: audit.FleetSeedReleased, api.FleetKeyWiped: audit.FleetKeyWiped,
}

func (p *Parent) fleetEvent(r api.KeyRelease) audit.Event {
	about := map[string]string{
		"instance": p.config.Instance.ID, "at": r.Time.UTC().Format(time.RFC3339Nano),
		"fleet": r.Fleet.Fleet, "region": r.Fleet.Region, "epoch": r.Fleet.Epoch,
	}
	if r.Fleet.KeyID != "" {
		about["key"] = r.Fleet.KeyID
	}
	name := cmp.Or(fleetSteps[r.Fleet.Step], audit.FleetSeedRefused)
	if r.Error != "" {
		about["error"] = r.Error
	}
	return audit.Event{Name: name, About: about}
}

func (p *Parent) hostEvent(r api.KeyRelease) audit.Event {
	about := map[string]string{
		"instance": p.config.Instance.ID, "at": r.Time.UTC().Format(time.RFC3339Nano),
		"key": r.Host.Key, "refusals": fmt.Sprint(r.Host.Refusals),
	}
	if r.Error != "" {
		about["error"] = r.Error
		return audit.Event{Name: audit.EngineHostRefused, About: about}
	}
	about["image"] = r.Host.Image
	return audit.Event{Name: audit.EngineHostTrusted, About: about}
}
