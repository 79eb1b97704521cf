package routing

import (
	"cmp"
	"math"
	"time"
)

// GateMargin is how much later a conversation's first token may be predicted at
// its home than elsewhere before it moves. What is cached at home spares the
// engine work, so that others wait less, too.
const GateMargin = 50 * time.Millisecond

// stepTokens is what a first token costs besides its prompt, in tokens read: the
// step of the engine in which it is made reads the model's weights, whatever the
// prompt. It is some 256 tokens on the engines whose figures package batching has.
const stepTokens = 256

// What stands in where none of the instances has told. All are alike then, and
// the figures only weigh a full engine against an unread prompt: reading and
// lasting are those of an A100 with a model of 8 billion parameters, as package
// batching has it.
const (
	typicalReadTokensPerSecond = 20_000
	typicalDuration            = 4 * time.Second
	typicalSlots               = 16
)

// pace is how fast an engine works.
type pace struct {
	readTokensPerSecond float64
	duration            float64 // of a request, in seconds
	slots               float64
}

// slowest is the pace of the slowest, in each respect, of those that have told
// theirs: it stands in for who has not, so that hiding gains nothing.
func slowest(able []ranked, candidates []Candidate) pace {
	read, slots, duration := math.Inf(1), math.Inf(1), 0.0
	for i := range able {
		c := &candidates[able[i].at]
		if r := c.Report.ReadTokensPerSecond; c.Report.Age != AgeMissing && r > 0 {
			read = min(read, r)
		}
		if c.Report.Age != AgeMissing {
			duration = max(duration, c.Report.RequestDuration.Seconds())
		}
		if n := able[i].slots; n > 0 {
			slots = min(slots, n)
		}
	}
	if math.IsInf(read, 1) {
		read = typicalReadTokensPerSecond
	}
	if math.IsInf(slots, 1) {
		slots = typicalSlots
	}
	return pace{read, cmp.Or(duration, typicalDuration.Seconds()), slots}
}

// firstToken predicts when an instance would give the first token of a prompt of
// which it has to read so many tokens anew, in seconds from now.
//
// That is when it has read what it had been sent before and the prompt itself,
// which engines do one after the other; and, if as many requests as it has slots
// run or wait already, when enough of them have ended. They end one by one, in
// the time that each lasts over the slots (Little's law). Of two that are alike in
// that, the one with more free slots is a little sooner.
func (c *Candidate) firstToken(tokens int, r *ranked, standIn pace) float64 {
	p := standIn
	if c.Report.Age != AgeMissing {
		p.readTokensPerSecond = cmp.Or(max(c.Report.ReadTokensPerSecond, 0), p.readTokensPerSecond)
		p.duration = cmp.Or(max(c.Report.RequestDuration.Seconds(), 0), p.duration)
	}
	p.slots = cmp.Or(r.slots, p.slots)
	read := c.unread(p.readTokensPerSecond) + count(tokens) + stepTokens*(1+r.requests/p.slots)
	queued := max(r.requests/r.share-p.slots+1, 0)
	return read/p.readTokensPerSecond/r.share + queued*p.duration/p.slots
}
