package controller

import (
	"maps"
	"slices"
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/fleet"
)

// demandOver is what an instance's rates are a mean of.
const demandOver = 30 * time.Second

// heard are an instance's heartbeats of the last demandOver, the oldest first.
type heard []beat

type beat struct {
	at       time.Time
	requests int64
	usage    map[string]fleet.Usage // nil: not known
}

// see takes a heartbeat, maybe one that was seen before.
func (h *heard) see(in *fleet.Instance) {
	now := beat{in.HeartbeatAt, in.Load.Requests, in.Usage}
	if last := len(*h) - 1; last >= 0 {
		switch before := (*h)[last]; {
		case !now.at.After(before.at):
			return
		case restarted(before, now):
			*h = nil
		}
	}
	*h = append(*h, now)
	for len(*h) > 2 && now.at.Sub((*h)[1].at) >= demandOver {
		*h = (*h)[1:]
	}
}

// restarted says whether an instance's parent has begun to count anew.
func restarted(before, now beat) bool {
	for model, used := range now.usage {
		was := before.usage[model]
		if used.Requests < was.Requests || used.Ended < was.Ended || used.Late < was.Late || used.Answers < was.Answers {
			return true
		}
	}
	return now.requests < before.requests
}

// asked is what a region's instances were asked for lately.
type asked struct {
	requests float64 // per second
	models   map[string]askedOf
	unknown  bool // what an instance does of its models is not known
}

// askedOf is that of one model.
type askedOf struct {
	requests, ended, late float64 // per second
	lately, ever          tokens
}

// tokens of so many answers.
type tokens struct{ sum, answers int64 }

func tokensOf(of fleet.Usage) tokens { return tokens{of.PromptTokens + of.OutputTokens, of.Answers} }

// add adds what an instance was asked for; that is not known after one heartbeat.
func (a *asked) add(h heard) (known bool) {
	last := len(h) - 1
	if last < 1 {
		return false
	}
	from, to := h[0], h[last]
	seconds := to.at.Sub(from.at).Seconds()
	per := func(from, to int64) float64 { return float64(to-from) / seconds }
	a.requests += per(from.requests, to.requests)
	if from.usage == nil || to.usage == nil {
		a.unknown = true
		return true
	}
	if a.models == nil {
		a.models = map[string]askedOf{}
	}
	for model, now := range to.usage {
		was, m := from.usage[model], a.models[model]
		m.requests += per(was.Requests, now.Requests)
		m.ended += per(was.Ended, now.Ended)
		m.late += per(was.Late, now.Late)
		before, after := tokensOf(was), tokensOf(now)
		m.lately = tokens{m.lately.sum + after.sum - before.sum, m.lately.answers + after.answers - before.answers}
		m.ever = tokens{m.ever.sum + after.sum, m.ever.answers + after.answers}
		a.models[model] = m
	}
	return true
}

// load is what the autoscaler takes of it. A request is taken for what those of its
// model took whose tokens were told: lately in this region, else the last in any, which
// mean remembers, else since the instances have started, else as those of the others.
func (a *asked) load(mean map[string]float64) autoscaler.Load {
	l := autoscaler.Load{Fresh: true, Requests: a.requests}
	if a.unknown {
		return l
	}
	var requests, sum float64 // of all models whose requests' tokens are known
	for _, model := range slices.Sorted(maps.Keys(a.models)) {
		m := a.models[model]
		if _, remembered := mean[model]; m.lately.answers > 0 {
			mean[model] = float64(m.lately.sum) / float64(m.lately.answers)
		} else if !remembered && m.ever.answers > 0 {
			mean[model] = float64(m.ever.sum) / float64(m.ever.answers)
		}
		if each, is := mean[model]; is {
			requests += m.requests
			sum += m.requests * each
		}
	}
	l.Models = map[string]autoscaler.Usage{}
	for model, m := range a.models {
		each, is := mean[model]
		switch {
		case is || m.requests == 0:
		case requests == 0:
			l.Models = nil
			return l
		default:
			each = sum / requests
		}
		used := autoscaler.Usage{Tokens: m.requests * each, Served: m.ended * each}
		if m.ended > 0 {
			used.Late = m.late / m.ended
		}
		l.Models[model] = used
	}
	return l
}
