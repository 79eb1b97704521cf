// Package lease decides who holds a lease, and until when: at most one at a time.
// It is pure: calls to the store are the caller's, and so are the clocks.
//
//	c := lease.New(lease.Config{Self: name, Length: 5 * time.Second})
//	for {
//		switch do := c.Next(time.Now()); do.Kind {
//		case lease.Read: …; c.Read(record, version, time.Now())
//		case lease.Write: …; c.Wrote(version) or c.Refused() or c.Unknown()
//		case lease.Wait: sleep until do.At
//		}
//	}
//
// A [Record] lies in a store that counts its writes and makes one only on the
// version that it was based on. Whoever holds the lease writes it again and again.
//
// # Time
//
// Nobody's clock is compared with another's, so it does not matter what they
// show. A holder stops acting when Length has passed on its own clock since it
// began the last renewal that succeeded. Another takes over only when it has seen
// no new version for longer than that on its own clock, counted from when it had
// read the last one, which is after that renewal began. So there is at most one
// as long as clocks run at the same rate within 5 % each, which [Grace] allows
// for (quartz is within 0.01 %).
//
// # Fencing
//
// A holder may be paused at any line, or its machine may be, and go on later
// believing that it holds the lease. So every acquisition has a token that is
// higher than all before it, the holder's writes carry it, and what they write to
// refuses tokens lower than one that it has seen (Kleppmann, "How to do
// distributed locking", 2016; Chubby calls them sequencers, Burrows 2006, section
// 2.4). That depends on no clock at all.
package lease

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Record is a lease as it is stored.
type Record struct {
	Holder string        `json:"holder"`    // empty: it was given back
	Token  int64         `json:"token"`     // fencing token of the holder, or of the last one
	Length time.Duration `json:"length_ns"` // how long the holder acts after a renewal
}

// Validate checks what was read.
func (r Record) Validate() error {
	switch {
	case r.Token < 1:
		return fmt.Errorf("lease: token %d: want 1 or more", r.Token)
	case r.Length < shortest || r.Length > longest:
		return fmt.Errorf("lease: length_ns %d: want %s to %s", r.Length, shortest, longest)
	}
	return nil
}

// Bounds of a lease's length.
const (
	shortest = 10 * time.Millisecond
	longest  = time.Hour
)

// Grace is how much longer than a lease's length another waits.
func Grace(length time.Duration) time.Duration { return length / 9 } // 1.05/0.95 = 1 + 2/19

// Config says who asks for the lease.
type Config struct {
	// Self names this process, unlike any other that ever was: a name that is used
	// again after a restart would find itself the holder.
	Self string
	// Place is what the names of this process, and of those before it in its place, begin
	// with, which have ended: what one of them holds is taken at once. Empty: there is none.
	Place string
	// Length of the lease, 10 ms to 1 h. It is renewed, and looked at, three times
	// in that time.
	Length time.Duration
}

// Kind is what there is to do.
type Kind int

// Kinds.
const (
	Wait Kind = iota
	Read
	Write
)

// Do is what a candidate does next.
type Do struct {
	Kind    Kind
	At      time.Time // of Wait: until when
	Record  Record    // of Write: what to store
	Version int64     // of Write: which version it replaces; 0: there is none
}

// Candidate wants the lease, and holds it as often as it can. Every time that it
// is given is of one clock that does not go back. It is not safe for concurrent
// use.
type Candidate struct {
	config  Config
	lasting time.Duration // of what is written; config.Length, or longer

	read    bool // what follows was read, or written by itself, and nobody said otherwise
	version int64
	record  Record
	seenAt  time.Time // when this version was first known

	next    time.Time // when there is something to do
	writing Record    // under way
	began   time.Time // of the write that is under way

	token int64     // that it holds the lease with; 0: it does not
	until time.Time // it acts before then
	floor int64     // tokens are higher
}

// New makes a candidate that knows nothing yet.
func New(config Config) (*Candidate, error) {
	if config.Self == "" {
		return nil, errors.New("lease: no name for this process")
	}
	if config.Length < shortest || config.Length > longest {
		return nil, fmt.Errorf("lease: length %s: want %s to %s", config.Length, shortest, longest)
	}
	return &Candidate{config: config, lasting: config.Length}, nil
}

// Last has the lease be for as long as this from its next renewal on, which is due now if
// it would else last longer. It is renewed, and looked at, as often as before: who holds it
// so survives a store that is away for long, and when it dies others wait for as long.
func (c *Candidate) Last(length time.Duration) error {
	if length < c.config.Length || length > longest {
		return fmt.Errorf("lease: length %s: want %s to %s", length, c.config.Length, longest)
	}
	if length > c.lasting && c.read && c.token != 0 {
		c.next = time.Time{}
	}
	c.lasting = length
	return nil
}

// Held gives the fencing token, and until when to act with it; 0: this candidate
// does not hold the lease.
func (c *Candidate) Held(now time.Time) (token int64, until time.Time) {
	if c.token == 0 || !now.Before(c.until) {
		return 0, time.Time{}
	}
	return c.token, c.until
}

// Holder is who holds the lease as far as is known; empty: nobody, or unknown.
func (c *Candidate) Holder() string { return c.record.Holder }

// Next says what to do now. Whatever came of it is to be told before it is called
// again.
func (c *Candidate) Next(now time.Time) Do {
	if !c.read {
		if now.Before(c.next) {
			return Do{Kind: Wait, At: c.next}
		}
		return Do{Kind: Read}
	}
	mine := c.record.Holder == c.config.Self
	switch {
	case mine && c.token == c.record.Token && c.token > c.floor && now.Before(c.until):
		if now.Before(c.next) {
			return Do{Kind: Wait, At: c.next}
		}
		return c.write(now, c.token) // renew
	case c.version == 0, mine, c.record.Holder == "", c.inherits(), !now.Before(c.expiry()):
		// Mine is what an earlier write of this process left, that ran out or whose
		// answer was lost: nobody else acts by it.
		return c.write(now, max(c.record.Token, c.floor)+1)
	case now.Before(c.next):
		return Do{Kind: Wait, At: earlier(c.next, c.expiry())}
	}
	return Do{Kind: Read}
}

func (c *Candidate) inherits() bool {
	return c.config.Place != "" && strings.HasPrefix(c.record.Holder, c.config.Place)
}

// expiry is when somebody else's lease has run out, if it is not renewed.
func (c *Candidate) expiry() time.Time {
	return c.seenAt.Add(c.record.Length + Grace(c.record.Length))
}

func (c *Candidate) write(now time.Time, token int64) Do {
	c.began = now
	if end := now.Add(c.lasting); c.token != 0 && end.Before(c.until) {
		c.until = end // as others may see it, whatever becomes of the answer
	}
	c.writing = Record{Holder: c.config.Self, Token: token, Length: c.lasting}
	return Do{Kind: Write, Record: c.writing, Version: c.version}
}

// Read tells what was read, and when the answer had come. Version 0: there is no
// record.
func (c *Candidate) Read(record Record, version int64, now time.Time) {
	if version != c.version {
		c.seenAt = now // the same version was not renewed, however long ago it was seen
	}
	c.read, c.record, c.version = true, record, version
	if c.token != 0 && (record.Holder != c.config.Self || record.Token != c.token) {
		c.token = 0
	}
	c.next = now.Add(c.config.Length / 3)
	if c.token != 0 {
		c.next = now // a renewal is due
	}
}

// Wrote tells that the write was made, and which version the record has now.
func (c *Candidate) Wrote(version int64) {
	c.read, c.record, c.version, c.seenAt = true, c.writing, version, c.began
	c.token, c.until = c.writing.Token, c.began.Add(c.writing.Length)
	c.next = c.began.Add(c.config.Length / 3)
}

// Refused tells that somebody else wrote meanwhile: a holder holds it no more.
func (c *Candidate) Refused() {
	c.read, c.token, c.next = false, 0, time.Time{}
}

// Unknown tells that it is not known what came of a read or a write: the store
// did not answer. A holder goes on until its time is over.
func (c *Candidate) Unknown(now time.Time) {
	c.read, c.next = false, now.Add(c.config.Length/6)
}

// Above tells that a token was seen where the lease's holder writes. A holder
// whose own is not higher takes the lease again, with one that is: somebody has
// removed the record, and the tokens began anew.
func (c *Candidate) Above(token int64) { c.floor = max(c.floor, token) }

// Release gives what to store so that another need not wait, if the lease is
// held; the candidate holds it no more.
func (c *Candidate) Release(now time.Time) (Do, bool) {
	token, _ := c.Held(now)
	held := token != 0 && c.read
	do := Do{Kind: Write, Record: Record{Token: token, Length: c.config.Length}, Version: c.version}
	c.Refused()
	return do, held
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
