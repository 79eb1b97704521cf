package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/controller/canary"
	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/routing"
)

// Rollback is what a router wants done about a version that is worse.
type Rollback struct {
	Model, Version string
	// Split is how the model's requests were divided when it was judged. If they are
	// divided otherwise by now, somebody has acted already, and nothing is to be done.
	Split  routing.Split
	Reason string // for people
}

// ErrDivided says that a model's requests are divided otherwise than they were when
// a version was judged.
var ErrDivided = errors.New("requests are divided otherwise by now")

const (
	// judgeInterval is how often verdicts are looked at that have come to nothing yet.
	judgeInterval = time.Second
	// defaultFalsePerDay is the most false verdicts that a day costs.
	defaultFalsePerDay = 0.01
)

// judges are what a router knows of versions on trial: it hears of every request's
// end that its Envoys log, and from the other routers what theirs have come to.
//
// Every router judges, by the same evidence but for what is on its way, and there is
// none that leads. To act twice is impossible all the same: whoever acts does so on
// the condition that weights are as they were judged ([Rollback.Split]).
type judges struct {
	region   fleet.Region
	rollback func(Rollback) error // nil: nobody can
	log      *slog.Logger
	verdict  chan struct{} // holds one: there is one, or may be

	mu     sync.Mutex
	trials *canary.Trials    // guarded by mu
	auto   map[string]bool   // guarded by mu: models of which versions may be rolled back
	said   map[string]string // guarded by mu: by model and version, what was logged last
	done   []rolledBack      // guarded by mu: the last ones, oldest first

	metrics judgeMetrics
}

// rolledBack is one on the admin's page /canary.
type rolledBack struct {
	At      time.Time `json:"at"`
	Model   string    `json:"model"`
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
}

// maxRolledBack is how many are remembered.
const maxRolledBack = 32

func newJudges(config *Config, log *slog.Logger) *judges {
	return &judges{
		region: config.Region, rollback: config.Rollback, log: log, verdict: make(chan struct{}, 1),
		trials: canary.NewTrials(config.CanaryWarmUp), said: map[string]string{}, metrics: newJudgeMetrics(),
	}
}

// set has judged what holds from now on.
func (j *judges) set(s *Settings, now time.Time) error {
	falsePerDay := s.FalsePerDay
	if falsePerDay == 0 {
		falsePerDay = defaultFalsePerDay
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.auto = s.AutoRollback
	return j.trials.Set(s.Splits, falsePerDay, now)
}

// observe takes note of a request that has ended. Those that another region's
// instance has served are not compared: how far it is says nothing of its version.
func (j *judges) observe(e extproc.Ended) {
	version, is := e.Instance.Versions[e.Model]
	if !is || e.Instance.Region != j.region {
		return
	}
	o := canary.Observation{
		Failed: e.Failed || e.Refused, // a version that refuses what the other takes is worse
		Prompt: e.Size.Prompt, Output: e.Size.Output, TTFT: e.FirstByte, PerToken: e.PerChunk,
	}
	j.mu.Lock()
	known := j.trials.Has(e.Model, version)
	worse := known && j.trials.Observe(e.Model, version, o, time.Now())
	j.mu.Unlock()
	if known {
		j.metrics.observe(e.Model, version, &o)
	}
	if worse {
		j.wake()
	}
}

func (j *judges) wake() {
	select {
	case j.verdict <- struct{}{}:
	default: // somebody is about to look
	}
}

// tell gives what the requests that were observed here have come to.
func (j *judges) tell() (all []peers.Evidence) {
	j.mu.Lock()
	told := j.trials.Tell()
	j.mu.Unlock()
	for _, t := range told[:min(len(told), peers.MaxEvidence)] {
		e := peers.Evidence{Model: t.Model, Canary: t.Canary, Split: t.Split, Began: t.Began.UnixNano(), Compared: t.Compared}
		for _, logs := range t.Log {
			e.Logs = append(e.Logs, logs[:]...)
		}
		all = append(all, e)
	}
	return all
}

// learn takes what another router's have come to.
func (j *judges) learn(m *peers.Message) {
	var told []canary.Told
	for _, e := range m.Evidence {
		t := canary.Told{Model: e.Model, Canary: e.Canary, Split: e.Split, Began: time.Unix(0, e.Began), Evidence: canary.Evidence{Compared: e.Compared}}
		if len(e.Logs) != len(t.Log)*len(t.Log[0]) {
			continue // another build's: what it counts by is not what this one does
		}
		for i := range t.Log {
			copy(t.Log[i][:], e.Logs[i*len(t.Log[i]):])
		}
		if t.Valid() {
			told = append(told, t)
		}
	}
	j.mu.Lock()
	worse := j.trials.Learn(m.Epoch.String(), m.Sequence, told, time.Now())
	j.mu.Unlock()
	if worse {
		j.wake()
	}
}

// run acts on verdicts until ctx ends: at once, and again while they have come to
// nothing.
func (j *judges) run(ctx context.Context) {
	ticker := time.NewTicker(judgeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.verdict:
		case <-ticker.C:
		}
		for _, t := range j.all() {
			if t.Verdict.Worse {
				j.act(t)
			}
		}
		select { // no oftener than that, however many requests a version that is worse still gets
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (j *judges) all() []canary.Trial {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := j.trials.All()
	for i := range all {
		versions := map[string]*canary.Figures{}
		for name, figures := range all[i].Versions {
			versions[name] = figures.Clone()
		}
		all[i].Versions = versions
	}
	return all
}

// act rolls a version back, or says why not.
func (j *judges) act(t canary.Trial) {
	reason := reasonOf(&t)
	j.mu.Lock()
	allowed := j.auto[t.Model]
	j.mu.Unlock()
	if !allowed || j.rollback == nil {
		j.say(t, slog.LevelWarn, "a version is worse; roll it back with mrgc canary abort", reason)
		return
	}
	err := j.rollback(Rollback{Model: t.Model, Version: t.Canary, Split: t.Split, Reason: reason})
	switch {
	case errors.Is(err, ErrDivided): // what holds from then on is about to come here, too
	case err != nil:
		j.metrics.failures.WithLabelValues(t.Model, t.Canary).Inc()
		j.say(t, slog.LevelError, "a version is worse and cannot be rolled back; trying on", reason+"; "+err.Error())
	default:
		j.metrics.rollbacks.WithLabelValues(t.Model, t.Canary, string(t.Verdict.Signal)).Inc()
		j.say(t, slog.LevelWarn, "a version is worse and has been rolled back", reason)
		j.mu.Lock()
		j.done = append(j.done, rolledBack{At: time.Now(), Model: t.Model, Version: t.Canary, Reason: reason})
		j.done = j.done[max(0, len(j.done)-maxRolledBack):]
		j.mu.Unlock()
	}
}

// say logs something of a trial once.
func (j *judges) say(t canary.Trial, level slog.Level, message, reason string) {
	j.mu.Lock()
	key := t.Model + "\n" + t.Canary
	again := j.said[key] == t.Since.String()+message
	j.said[key] = t.Since.String() + message
	j.mu.Unlock()
	if !again {
		j.log.Log(context.Background(), level, message, "model", t.Model, "version", t.Canary, "compared_with", t.Present, "reason", reason)
	}
}

// reasonOf says why a version is worse, with what this router has seen of it.
func reasonOf(t *canary.Trial) string {
	is, was := t.Versions[t.Canary], t.Versions[t.Present]
	reason := fmt.Sprintf("%s: worse than %s by %d of its requests, evidence %.2f of 1",
		t.Verdict.Signal, t.Present, t.Verdict.Compared, t.Verdict.Evidence[slices.Index(canary.Signals[:], t.Verdict.Signal)])
	reason += fmt.Sprintf("; here %.1f%% failed against %.1f%%", 100*is.ErrorRate(), 100*was.ErrorRate())
	for _, s := range []canary.Signal{canary.SignalTTFT, canary.SignalPerToken} {
		if ratio, known := is.Ratio(s, was); known {
			reason += fmt.Sprintf(", %s %.2f times as long", s, ratio)
		}
	}
	return reason
}

// trialEntry is a version on trial on the admin's page /canary.
type trialEntry struct {
	Model    string             `json:"model"`
	Version  string             `json:"version"`
	Present  string             `json:"present"`
	Weights  map[string]int     `json:"weights_per_mille"`
	SinceSec float64            `json:"age_seconds"` // of these weights
	Auto     bool               `json:"auto_rollback"`
	Verdict  string             `json:"verdict"`          // no worse, or worse
	Signal   canary.Signal      `json:"signal,omitempty"` // by which
	Evidence map[string]float64 `json:"evidence"`         // by signal: worse from 1
	Compared int                `json:"compared"`         // requests of the version, by all routers that are heard
	Own      int                `json:"compared_here"`    // of these, by this router
	Ratios   map[string]float64 `json:"ratios"`           // by signal: times as long as the present one, size by size, here
	// Versions has both, of what this router has seen.
	Versions map[string]*canary.Figures `json:"versions"`
}

// Verdicts on the admin's page.
const (
	verdictWorse   = "worse"
	verdictNoWorse = "no worse"
)

func (j *judges) serve(w http.ResponseWriter, _ *http.Request) {
	now, page := time.Now(), []trialEntry{}
	for _, t := range j.all() {
		page = append(page, j.entryOf(t, now))
	}
	j.mu.Lock()
	done := append([]rolledBack{}, j.done...)
	j.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]any{"region": j.region, "trials": page, "rolled_back": done})
}

func (j *judges) entryOf(t canary.Trial, now time.Time) trialEntry {
	j.mu.Lock()
	auto := j.auto[t.Model]
	j.mu.Unlock()
	entry := trialEntry{
		Model: t.Model, Version: t.Canary, Present: t.Present, Weights: map[string]int{}, SinceSec: now.Sub(t.Since).Seconds(),
		Auto: auto, Verdict: verdictNoWorse, Evidence: map[string]float64{}, Compared: t.Verdict.Compared, Own: t.Own,
		Ratios: map[string]float64{}, Versions: t.Versions,
	}
	if t.Verdict.Worse {
		entry.Verdict, entry.Signal = verdictWorse, t.Verdict.Signal
	}
	for _, v := range t.Split {
		entry.Weights[v.Name] = v.Weight
	}
	for i, signal := range canary.Signals {
		entry.Evidence[string(signal)] = max(t.Verdict.Evidence[i], -1000) // JSON knows no infinity
		if ratio, known := t.Versions[t.Canary].Ratio(signal, t.Versions[t.Present]); known && signal != canary.SignalErrors {
			entry.Ratios[string(signal)] = ratio
		}
	}
	return entry
}

// judgeMetrics are what a router publishes of versions.
type judgeMetrics struct {
	requests            *prometheus.CounterVec   // by model, version, outcome
	firstByte, perToken *prometheus.HistogramVec // by model, version
	rollbacks, failures *prometheus.CounterVec
}

func newJudgeMetrics() judgeMetrics {
	versions := []string{"model", "version"}
	return judgeMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_version_requests_total", Help: "Requests of models that are divided between versions, by version and outcome: served, failed.",
		}, append(slices.Clip(versions), "outcome")),
		firstByte: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mrgc_version_time_to_first_token_seconds", Help: "Time from when an instance was sent a request to the first byte of its answer, by version.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 14), // to 82 s
		}, versions),
		perToken: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mrgc_version_time_per_token_seconds", Help: "Time for each chunk of a streamed answer after its first, by version.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12), // to 2 s
		}, versions),
		rollbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_canary_rollbacks_total", Help: "Versions that this router has rolled back, by the signal that was worse.",
		}, append(slices.Clip(versions), "signal")),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_canary_rollback_failures_total", Help: "Times that this router could not roll a version back; it tries on.",
		}, versions),
	}
}

func (m *judgeMetrics) observe(model, version string, o *canary.Observation) {
	outcome := "served"
	if o.Failed {
		outcome = "failed"
	}
	m.requests.WithLabelValues(model, version, outcome).Inc()
	if o.TTFT > 0 {
		m.firstByte.WithLabelValues(model, version).Observe(o.TTFT.Seconds())
	}
	if o.PerToken > 0 {
		m.perToken.WithLabelValues(model, version).Observe(o.PerToken.Seconds())
	}
}

// trialCollector reads what is on trial when it is collected.
type trialCollector struct {
	judges                           *judges
	evidence, ratio, compared, worse *prometheus.Desc
}

func (j *judges) register(reg prometheus.Registerer) error {
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"region": string(j.region)}, reg)
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"model", "version"}, labels...), nil)
	}
	return errors.Join(
		reg.Register(j.metrics.requests), reg.Register(j.metrics.firstByte), reg.Register(j.metrics.perToken),
		reg.Register(j.metrics.rollbacks), reg.Register(j.metrics.failures),
		reg.Register(&trialCollector{
			judges:   j,
			evidence: desc("mrgc_canary_evidence", "Evidence that a version is worse than the present one, by signal: a verdict at 1.", "signal"),
			ratio:    desc("mrgc_canary_time_ratio", "Times as long as at the present version, size by size, by signal.", "signal"),
			compared: desc("mrgc_canary_compared", "Requests of the version that were compared, by all routers that are heard."),
			worse:    desc("mrgc_canary_worse", "1 when the version is judged worse."),
		}))
}

func (c *trialCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.evidence, c.ratio, c.compared, c.worse} {
		ch <- d
	}
}

func (c *trialCollector) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	for _, t := range c.judges.all() {
		entry := c.judges.entryOf(t, now)
		gauge := func(d *prometheus.Desc, value float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, append([]string{t.Model, t.Canary}, labels...)...)
		}
		for signal, evidence := range entry.Evidence {
			gauge(c.evidence, evidence, signal)
		}
		for signal, ratio := range entry.Ratios {
			gauge(c.ratio, ratio, signal)
		}
		gauge(c.compared, float64(entry.Compared))
		worse := 0.0
		if t.Verdict.Worse {
			worse = 1
		}
		gauge(c.worse, worse)
	}
}
