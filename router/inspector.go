package router

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/release"
)

// Inspection is whom the operator trusts, for a router to say when an enclave of
// the fleet is none of these.
type Inspection struct {
	Manifest func() *release.Manifest // the newest; required, and never nil
	Roots    []*x509.Certificate      // of attestation: AWS's, or a development root
	// Record is told of what an auditor asks about; nil: nobody is.
	Record func(...audit.Event)
}

// inspector verifies the fleet's attestation documents as clients do, and reports
// what does not verify. It takes nobody out of service: clients decide by their
// own policies, and a manifest that is wrong must not stop a cluster.
type inspector struct {
	Inspection
	log *slog.Logger

	mu       sync.Mutex
	verdicts map[string]verdict // guarded by mu: by instance
	shown    map[string]shown   // guarded by mu: what they are of
	manifest uint64             // guarded by mu: version of the one that was reported last
}

// shown is what an instance has answered.
type shown struct {
	instance   *fleet.Instance
	recipients []api.Recipient
}

// verdict is what the newest document of an instance shows.
type verdict struct {
	Instance string    `json:"instance"`
	Region   string    `json:"region"`
	Trusted  bool      `json:"trusted"`
	Release  string    `json:"release,omitempty"` // name
	Version  uint64    `json:"version,omitempty"`
	PCR0     string    `json:"pcr0,omitempty"`
	Error    string    `json:"error,omitempty"` // why it is not trusted
	Since    time.Time `json:"since"`           // when it became so
}

// same says whether nothing has changed that anybody has to know. Errors name
// times and ages: a document that stays bad is one story.
func (v verdict) same(other verdict) bool {
	return v.Trusted == other.Trusted && v.Version == other.Version && v.PCR0 == other.PCR0
}

func newInspector(config Inspection, log *slog.Logger) *inspector {
	if config.Record == nil {
		config.Record = func(...audit.Event) {}
	}
	return &inspector{Inspection: config, log: log, verdicts: map[string]verdict{}, shown: map[string]shown{}}
}

// inspect looks at what an instance has answered just now.
func (i *inspector) inspect(in *fleet.Instance, recipients []api.Recipient, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	manifest := i.Manifest()
	i.reportManifest(manifest)
	i.shown[in.ID] = shown{in, recipients}
	i.look(manifest, in, recipients, now)
}

// recheck looks again at what everybody has answered when there is another
// manifest.
func (i *inspector) recheck(now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	manifest := i.Manifest()
	if manifest.Version == i.manifest {
		return
	}
	i.reportManifest(manifest)
	for _, s := range i.shown {
		i.look(manifest, s.instance, s.recipients, now)
	}
}

// look comes to a verdict. The caller holds mu.
func (i *inspector) look(manifest *release.Manifest, in *fleet.Instance, recipients []api.Recipient, now time.Time) {
	fresh := i.judge(manifest, in, recipients, now)
	before, known := i.verdicts[in.ID]
	if known && fresh.same(before) {
		fresh.Since = before.Since
	} else {
		i.report(fresh, before)
	}
	i.verdicts[in.ID] = fresh
}

// judge verifies all recipients of an instance: one that does not verify is its
// verdict, whatever the others are.
func (i *inspector) judge(manifest *release.Manifest, in *fleet.Instance, recipients []api.Recipient, now time.Time) verdict {
	v := verdict{Instance: in.ID, Region: string(in.Region), Since: now}
	policy := attest.Policy{Roots: i.Roots, Releases: manifest.Releases, MinVersion: manifest.MinVersion}
	err := errors.New("it shows no recipient")
	for _, r := range recipients {
		claims := sha256.Sum256(r.Claims)
		var doc *attest.Document
		if doc, err = attest.Verify(r.Attestation, policy, attest.Expected{UserData: claims[:], Region: in.Region.AWS()}, now); err != nil {
			break
		}
		v.Release, v.Version, v.PCR0 = doc.Release.Name, doc.Release.Version, doc.PCRs[0].String()
	}
	if err != nil {
		return verdict{Instance: v.Instance, Region: v.Region, Since: now, Error: err.Error()}
	}
	v.Trusted = true
	return v
}

// report tells of a verdict that has changed. The caller holds mu.
func (i *inspector) report(v, before verdict) {
	if !v.Trusted {
		i.log.Error("an enclave's attestation is refused: clients will not seal to it", "instance", v.Instance, "error", v.Error)
		i.Record(audit.Event{Name: audit.DocumentRefused, About: map[string]string{"instance": v.Instance, "region": v.Region, "error": v.Error}})
		return
	}
	i.log.Info("enclave", "instance", v.Instance, "release", v.Release, "version", v.Version)
	about := map[string]string{
		"instance": v.Instance, "region": v.Region, "release": v.Release, "version": strconv.FormatUint(v.Version, 10), "pcr0": v.PCR0,
	}
	if before.Version > 0 {
		about["before"] = strconv.FormatUint(before.Version, 10)
	}
	i.Record(audit.Event{Name: audit.EnclaveRelease, About: about})
}

// reportManifest tells of a manifest that is new. The caller holds mu.
func (i *inspector) reportManifest(m *release.Manifest) {
	if m.Version == i.manifest {
		return
	}
	i.manifest = m.Version
	i.Record(audit.Event{Name: audit.Manifest, About: map[string]string{
		"version": strconv.FormatUint(m.Version, 10), "min_version": strconv.FormatUint(m.MinVersion, 10),
	}})
}

// forget drops instances that have gone.
func (i *inspector) forget(snapshot *fleet.Snapshot) {
	i.mu.Lock()
	defer i.mu.Unlock()
	gone := func(id string) bool {
		return !slices.ContainsFunc(snapshot.Instances, func(in *fleet.Instance) bool { return in.ID == id })
	}
	maps.DeleteFunc(i.verdicts, func(id string, _ verdict) bool { return gone(id) })
	maps.DeleteFunc(i.shown, func(id string, _ shown) bool { return gone(id) })
}

// all are the verdicts, by instance.
func (i *inspector) all() []verdict {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.SortedFunc(maps.Values(i.verdicts), func(a, b verdict) int { return strings.Compare(a.Instance, b.Instance) })
}

// serve is the admin's page /releases.
func (i *inspector) serve(w http.ResponseWriter, _ *http.Request) {
	m := i.Manifest()
	writeJSON(w, http.StatusOK, map[string]any{"version": m.Version, "min_version": m.MinVersion, "instances": i.all()})
}

var (
	trustedDesc = prometheus.NewDesc("mrgc_enclave_trusted",
		"1: the instance's attestation verifies against the manifest of releases; 0: it does not, and clients refuse it.", []string{"instance"}, nil)
	releaseDesc = prometheus.NewDesc("mrgc_enclave_release",
		"Version of the release that the instance's enclave runs, of those that are trusted.", []string{"instance"}, nil)
)

// Describe implements [prometheus.Collector].
func (i *inspector) Describe(to chan<- *prometheus.Desc) {
	to <- trustedDesc
	to <- releaseDesc
}

// Collect implements [prometheus.Collector].
func (i *inspector) Collect(to chan<- prometheus.Metric) {
	for _, v := range i.all() {
		trusted := 0.0
		if v.Trusted {
			trusted = 1
			to <- prometheus.MustNewConstMetric(releaseDesc, prometheus.GaugeValue, float64(v.Version), v.Instance)
		}
		to <- prometheus.MustNewConstMetric(trustedDesc, prometheus.GaugeValue, trusted, v.Instance)
	}
}
