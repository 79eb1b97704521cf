package canary

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/routing"
)

// Trials judge the new versions of every model, as their requests are divided now: of
// those that have a weight the first listed is the present one, and each other is a
// canary that is compared with it. A model whose weights change is judged anew: what
// was seen under others says nothing of those.
//
// Several routers see a part of the requests each. They tell each other what theirs
// have come to ([Trials.Tell], [Trials.Learn]), and each judges by all of it.
//
// It is not safe for concurrent use. Times do not run backwards.
type Trials struct {
	warmUp time.Duration
	models map[string]*modelTrials
	heard  map[string]uint64 // by teller: the newest sequence
}

// modelTrials are those of one model.
type modelTrials struct {
	split    routing.Split
	id       string
	since    time.Time
	versions map[string]*Figures
	trials   []*trial
}

// trial is of one canary.
type trial struct {
	canary, present string
	judge           *Judge
	told            map[string]Told // by teller: what it has said last
}

// Told is what the requests that one teller has seen of a canary have come to.
type Told struct {
	Model, Canary string
	// Split names the weights that hold, Began when the teller began to judge under
	// them: of two that began at different times, the later has forgotten the earlier.
	Split string
	Began time.Time
	Evidence
}

// maxTellers is how many tellers there are at most in the lifetime of a trial, each
// restart one. What more would say is not heard.
const maxTellers = 1024

// NewTrials judges nothing yet. A warm-up of 0 is that of [Config].
func NewTrials(warmUp time.Duration) *Trials {
	return &Trials{warmUp: warmUp, models: map[string]*modelTrials{}, heard: map[string]uint64{}}
}

// Set says how models' requests are divided from now on, by name, and what false
// verdicts a day cost at most. What is divided as before goes on being judged.
func (t *Trials) Set(splits map[string]routing.Split, falsePerDay float64, now time.Time) error {
	for model := range t.models {
		if len(splits[model]) == 0 {
			delete(t.models, model)
		}
	}
	for model, split := range splits {
		if before := t.models[model]; before != nil && slices.Equal(before.split, split) {
			continue
		}
		m := &modelTrials{split: split, id: splitID(split), since: now, versions: map[string]*Figures{}}
		for _, v := range split {
			m.versions[v.Name] = &Figures{}
		}
		live := slices.DeleteFunc(slices.Clone(split), func(v routing.Version) bool { return v.Weight == 0 })
		for _, v := range live[min(1, len(live)):] {
			share := float64(v.Weight) / float64(v.Weight+live[0].Weight)
			judge, err := New(Config{Share: share, FalsePerDay: falsePerDay, WarmUp: t.warmUp}, now)
			if err != nil {
				return fmt.Errorf("model %q, version %q: %w", model, v.Name, err)
			}
			m.trials = append(m.trials, &trial{canary: v.Name, present: live[0].Name, judge: judge, told: map[string]Told{}})
		}
		t.models[model] = m
	}
	return nil
}

// splitID names a split in few bytes.
func splitID(split routing.Split) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%+v", split))
	return hex.EncodeToString(sum[:8])
}

// Has says whether a model's requests are divided, and a version is listed.
func (t *Trials) Has(model, version string) bool {
	m := t.models[model]
	return m != nil && m.versions[version] != nil
}

// Observe takes note of a request of a version, whatever o says of whose it is. It
// says whether that has made a canary worse, or it was already.
func (t *Trials) Observe(model, version string, o Observation, now time.Time) (worse bool) {
	if !t.Has(model, version) {
		return false
	}
	m := t.models[model]
	m.versions[version].add(&o)
	for _, trial := range m.trials {
		if o.Canary = version == trial.canary; o.Canary || version == trial.present {
			worse = trial.judge.Observe(o, now).Worse || worse
		}
	}
	return worse
}

// Tell says what the requests that were observed here have come to.
func (t *Trials) Tell() (all []Told) {
	for model, m := range t.models {
		for _, trial := range m.trials {
			all = append(all, Told{Model: model, Canary: trial.canary, Split: m.id, Began: m.since, Evidence: trial.judge.Own()})
		}
	}
	slices.SortFunc(all, func(a, b Told) int {
		return strings.Compare(a.Model+"\n"+a.Canary, b.Model+"\n"+b.Canary)
	})
	return all
}

// Learn takes what a teller says, of which a later message has a higher sequence. It
// says whether that has made a canary worse, or it was already.
func (t *Trials) Learn(teller string, sequence uint64, all []Told, now time.Time) (worse bool) {
	if last, known := t.heard[teller]; known && sequence <= last || !known && len(t.heard) >= maxTellers {
		return false
	}
	t.heard[teller] = sequence
	for _, said := range all {
		m := t.models[said.Model]
		if m == nil || m.id != said.Split {
			continue // it has other weights, or is not there yet
		}
		for _, trial := range m.trials {
			if trial.canary == said.Canary {
				worse = trial.learn(teller, said, now) || worse
			}
		}
	}
	return worse
}

func (t *trial) learn(teller string, said Told, now time.Time) (worse bool) {
	before := t.told[teller]
	switch {
	case said.Began.Before(before.Began):
		return t.judge.verdict.Worse
	case said.Began.After(before.Began):
		before = Told{}
	}
	t.told[teller] = said
	return t.judge.Absorb(said.minus(before.Evidence), now).Worse
}

// Trial is one canary's, for people and for those who act.
type Trial struct {
	Model, Canary, Present string
	Split                  routing.Split // under which it is judged
	Since                  time.Time
	Verdict                Verdict
	Own                    int // of Verdict.Compared, those that were observed here
	// Versions has both versions' figures, of what was observed here.
	Versions map[string]*Figures
}

// All are the trials, in order of model and canary. Split and Versions are not the
// caller's to change.
func (t *Trials) All() (all []Trial) {
	for model, m := range t.models {
		for _, trial := range m.trials {
			all = append(all, Trial{
				Model: model, Canary: trial.canary, Present: trial.present, Split: m.split, Since: m.since,
				Verdict: trial.judge.verdict, Own: trial.judge.own.Compared,
				Versions: map[string]*Figures{trial.canary: m.versions[trial.canary], trial.present: m.versions[trial.present]},
			})
		}
	}
	slices.SortFunc(all, func(a, b Trial) int {
		return strings.Compare(a.Model+"\n"+a.Canary, b.Model+"\n"+b.Canary)
	})
	return all
}
