package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

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

// judgeInterval is how often verdicts are looked at that have come to nothing yet.
const judgeInterval = time.Second

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
	j.mu.Lock()
	defer j.mu.Unlock()
	j.auto = s.AutoRollback
	return j.trials.Set(s.Splits, s.FalsePerDay, now)
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
		Prompt: e.Size.Prompt, Output: e.Output, TTFT: e.FirstByte, PerToken: e.PerToken,
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
