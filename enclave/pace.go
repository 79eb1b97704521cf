package enclave

import (
	"time"

	"github.com/mrgc/mrgc/internal/seal"
)

// DefaultAnswerWait is how long an event of a stream waits at most for others to be
// sealed with: two of them meet from 9 a second on.
const DefaultAnswerWait = 120 * time.Millisecond

// pace decides when the events of a stream are sealed, and in how large frames: a
// function of how many there are and when they come. How long they are it looks at as
// little as it can, because what it decides can be seen on the wire: an event counts
// as long as they are in the mean. What does not fit by that reckoning leaves with
// the frames of the events after it.
//
// A frame goes as soon as events fill it, or nearly so; an event may be cut for that.
// No event waits longer than wait, and none waits where that could gain nothing: the
// first ones, since somebody waits for the first token, and those of a stream that is
// slower than wait is long. The zero pace lets nothing wait.
type pace struct {
	wait time.Duration

	events  int       // so far
	measure int       // bytes of all of them but the first, which names roles and is longer
	last    time.Time // when the last one came
	slow    bool      // it came too late to have been waited for

	waiting []arrival
	pending int // bytes, of all that are waiting
	counted int // what these count as
}

// arrival is an event, or what is left of one.
type arrival struct {
	bytes int
	at    time.Time
}

const (
	// eventsAtOnce do not wait: the first one of a chat has a role and no text.
	eventsAtOnce = 2
	// eventStep is what the bytes that an event counts as are a multiple of, so that
	// they say next to nothing of what the events are.
	eventStep = 16
	// paddingShare of what is sealed may be padding, for it to leave before wait is over.
	paddingShare = 8
)

// came takes note of an event.
func (p *pace) came(bytes int, now time.Time) {
	p.slow = p.events > 0 && now.Sub(p.last) > p.wait
	p.last = now
	p.waiting = append(p.waiting, arrival{bytes, now})
	p.pending += bytes
	if p.events++; p.events == 1 {
		p.counted += bytes
	} else {
		p.measure += bytes
		p.counted += p.each()
	}
	if p.pending > p.counted+seal.MinFrameData { // by far not like the others
		p.counted = p.pending
	}
}

// each is what an event counts as that is not the first.
func (p *pace) each() int {
	others := p.events - 1
	return (p.measure + others*eventStep - 1) / (others * eventStep) * eventStep
}

// release gives the frames to be sealed now, in what is waiting, by how much they
// hold: none, or the last of them may be filled in part.
func (p *pace) release(now time.Time) []int {
	due, waits := p.due()
	switch {
	case !waits:
		return nil
	case !now.Before(due):
		return p.take(seal.Frames(0, max(p.pending, p.counted)), 0)
	}
	frames := seal.Frames(0, p.counted)
	if capacity(frames)-p.counted <= p.counted/paddingShare {
		return p.take(frames, 0)
	}
	rest := p.counted % seal.MinFrameData
	return p.take(seal.Frames(0, p.counted-rest), rest)
}

// all gives the frames for everything that is waiting.
func (p *pace) all() []int { return p.take(seal.Frames(0, max(p.pending, p.counted)), 0) }

// due is when what is waiting has waited long enough; false: nothing is waiting.
func (p *pace) due() (time.Time, bool) {
	switch {
	case len(p.waiting) == 0:
		return time.Time{}, false
	case p.slow || p.events-len(p.waiting) < eventsAtOnce:
		return p.waiting[0].at, true
	}
	return p.waiting[0].at.Add(p.wait), true
}

// take takes away what fits into frames; the rest counts as so much.
func (p *pace) take(frames []int, rest int) []int {
	room := capacity(frames)
	if room == 0 {
		return nil
	}
	p.counted = rest
	for len(p.waiting) > 0 && p.waiting[0].bytes <= room {
		room, p.pending = room-p.waiting[0].bytes, p.pending-p.waiting[0].bytes
		p.waiting = p.waiting[1:]
	}
	if len(p.waiting) > 0 {
		p.waiting[0].bytes, p.pending = p.waiting[0].bytes-room, p.pending-room
	}
	return frames
}

// capacity is how many bytes frames hold.
func capacity(frames []int) (all int) {
	for _, holds := range frames {
		all += holds
	}
	return all
}
