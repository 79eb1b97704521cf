// Package peers is what routers tell each other, and what one of them still believes
// of it: pure, with time as an argument. Those of one region tell each other all of
// it, those of others what their canaries and their tenants' limits have come to.
//
// A router tells a [Message] again and again: what it has in flight on each
// instance and for each tenant, all of it and in absolute numbers, under the epoch
// of its process and a sequence that rises. A lost message costs nothing that the
// next does not make good, and one that comes late or twice is known by its
// sequence. [Views] holds the newest message of each router for a second. There is
// no leader, nothing is stored, and nobody waits for anybody.
//
// A message also has what has changed since the last one and need not arrive:
// where conversations went, which is a hint, and what Envoy said of requests
// that another router picked, for which that has a time-out.
package peers

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Limits of a message. What does not fit is left out by the sender; what is
// beyond them is no message.
const (
	MaxMessageBytes = 384 << 10
	MaxInstances    = 1024 // with requests in flight
	MaxClaims       = 256
	MaxHomes        = 256
	MaxEvents       = 256
	MaxEvidence     = 32 // canaries
	MaxLogs         = 16 // of one
	MaxUses         = 256

	MaxNameBytes = 256 // of a conversation's key or a request's id
	maxIDBytes   = 64  // of an instance's id

	maxRequests = 1 << 20 // on one instance
	maxTokens   = 1 << 40
	maxWeight   = 1 << 10
	maxUse      = 100 * 365 * 24 * time.Hour
	maxUsed     = 2 << 20 // tokens of one request: twice what can be declared of prompt or answer
)

// Message is what one router tells another.
type Message struct {
	_        struct{} `cbor:",toarray"`
	Epoch    Epoch
	Sequence uint64 // rises with each message of the epoch
	// InFlight has every instance on which the sender has requests, by its own
	// picks alone.
	InFlight []Count
	// Homes and Events are news, oldest first.
	Homes  []Home
	Events []Event
	// Claims has what each tenant has in flight of each model, by the sender's own
	// picks alone, in order of model and tenant.
	Claims []Claim
	// Evidence has what the sender's own requests say of each canary, in order of
	// model and canary.
	Evidence []Evidence
	// Uses has what tenants have used of their limits through the sender alone, as far
	// as it has changed since the last message, in order of tenant; and Begun is up to
	// which number the sender's counts of it have begun by now.
	Uses  []Use
	Begun uint64
}

// Use is what a tenant has used of its limits through one router since the router has
// begun to count: all of it, as the times in which the limits allow as much again.
// What was given back is taken off, also of what was used before.
type Use struct {
	_                struct{} `cbor:",toarray"`
	Tenant           string
	Count            uint64 // the router's n-th, of any tenant
	Requests, Tokens time.Duration
}

// Evidence is what requests have come to that the sender has seen end, of a model's
// canary: sums, as package controller/canary has them.
type Evidence struct {
	_             struct{} `cbor:",toarray"`
	Model, Canary string
	Split         string // names the weights that hold
	Began         int64  // nanoseconds since 1970: when the sums were 0
	Compared      int
	Logs          []float64
}

func (e *Evidence) compare(o *Evidence) int {
	return cmp.Or(cmp.Compare(e.Model, o.Model), cmp.Compare(e.Canary, o.Canary))
}

// Epoch names a router's process. Epochs of one router are ordered by when
// they began.
type Epoch struct {
	_     struct{} `cbor:",toarray"`
	Began int64    // nanoseconds since 1970, by the router's clock
	ID    uint64   // random
}

// compare orders the earlier epoch first.
func (e Epoch) compare(o Epoch) int {
	return cmp.Or(cmp.Compare(e.Began, o.Began), cmp.Compare(e.ID, o.ID))
}

// String is for people.
func (e Epoch) String() string { return fmt.Sprintf("%x-%016x", e.Began, e.ID) }

// Work is what is in flight on an instance.
type Work struct {
	Requests int
	Tokens   int // of their prompts, that the instance has to read anew
	// The part of both that the instance's last load report does not have, as it was
	// sent since.
	SentRequests, SentTokens int
}

// Plus is both together.
func (w Work) Plus(o Work) Work {
	return Work{w.Requests + o.Requests, w.Tokens + o.Tokens, w.SentRequests + o.SentRequests, w.SentTokens + o.SentTokens}
}

// Count is what the sender has in flight on an instance.
type Count struct {
	_        struct{} `cbor:",toarray"`
	Instance string

	Requests, Tokens, SentRequests, SentTokens int // as in Work
}

// Claim is what a tenant has in flight of a model.
type Claim struct {
	_             struct{} `cbor:",toarray"`
	Model, Tenant string
	Weight        int // the tenant's, which its share goes by
	Tokens        int // of prompts, cached or not, and the most that the answers may have
}

func (c *Claim) compare(o *Claim) int {
	return cmp.Or(cmp.Compare(c.Model, o.Model), cmp.Compare(c.Tenant, o.Tenant))
}

// TopClaims puts claims in a message's order. Of more than fit it keeps the
// largest. It changes what it is given.
func TopClaims(all []Claim) []Claim {
	if len(all) > MaxClaims {
		slices.SortFunc(all, func(a, b Claim) int { return cmp.Or(cmp.Compare(b.Tokens, a.Tokens), a.compare(&b)) })
		all = all[:MaxClaims]
	}
	slices.SortFunc(all, func(a, b Claim) int { return a.compare(&b) })
	return all
}

// Home says where a conversation's last request went.
type Home struct {
	_                      struct{} `cbor:",toarray"`
	Conversation, Instance string
}

// Event is what Envoy's access log says of a request that the sender has not
// picked: it has moved to another instance, or ended.
type Event struct {
	_        struct{} `cbor:",toarray"`
	Request  string   // by Envoy's id
	Instance string   // where it is, or was last; empty when it was nowhere, or nobody knows
	Kind     Kind
	Used     int // tokens, of one that has ended; or UsedUnknown
}

// UsedUnknown is of a request that has not ended, or may have used anything.
const UsedUnknown = -1

// Kind is what has become of a request.
type Kind uint8

// Kinds.
const (
	Moved  Kind = iota // an attempt at Instance has begun
	Ended              // in a way that says nothing of any instance
	Served             // Instance has served it, whatever the answer
	Failed             // Instance, or where it was last, has failed it
	kinds
)

// Encode gives the message's one form (RFC 8949, section 4.2.1), or says which
// limit it is beyond.
func (m *Message) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	raw, err := encMode.Marshal(m)
	if err == nil && len(raw) > MaxMessageBytes {
		err = fmt.Errorf("peers: message of %d bytes, at most %d", len(raw), MaxMessageBytes)
	}
	return raw, err
}

// Decode reads what Encode gives and nothing else.
func Decode(raw []byte) (*Message, error) {
	if len(raw) > MaxMessageBytes {
		return nil, fmt.Errorf("peers: message of %d bytes, at most %d", len(raw), MaxMessageBytes)
	}
	var m Message
	if err := decMode.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("peers: message: %w", err)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return &m, nil
}

// The modes are fixed, and checked by every test.
var encMode, decMode = func() (cbor.EncMode, cbor.DecMode) {
	encode := cbor.CoreDetEncOptions()
	encode.NilContainers = cbor.NilContainerAsEmpty
	enc, encErr := encode.EncMode()
	dec, decErr := cbor.DecOptions{
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  4,
		MaxArrayElements: MaxInstances,
		MaxMapPairs:      16,
	}.DecMode()
	if err := errors.Join(encErr, decErr); err != nil {
		panic(err)
	}
	return enc, dec
}()

func (m *Message) check() error {
	switch {
	case m.Epoch.Began <= 0:
		return errors.New("peers: message without an epoch")
	case len(m.InFlight) > MaxInstances || len(m.Homes) > MaxHomes || len(m.Events) > MaxEvents:
		return fmt.Errorf("peers: message of %d counts, %d homes and %d events, at most %d, %d and %d",
			len(m.InFlight), len(m.Homes), len(m.Events), MaxInstances, MaxHomes, MaxEvents)
	}
	last := ""
	for _, c := range m.InFlight {
		if !isID(c.Instance) || c.Instance <= last {
			return errors.New("peers: message's instances are not in order, each once")
		}
		last = c.Instance
		if c.Requests < 1 || c.Requests > maxRequests || c.Tokens < 0 || c.Tokens > maxTokens ||
			c.SentRequests < 0 || c.SentRequests > c.Requests || c.SentTokens < 0 || c.SentTokens > c.Tokens {
			return fmt.Errorf("peers: message of %d requests and %d tokens, %d and %d of them new, on an instance",
				c.Requests, c.Tokens, c.SentRequests, c.SentTokens)
		}
	}
	if err := errors.Join(m.checkClaims(), m.checkEvidence(), m.checkUses()); err != nil {
		return err
	}
	for _, h := range m.Homes {
		if !isName(h.Conversation) || !isID(h.Instance) {
			return errors.New("peers: message with a home that names nothing")
		}
	}
	for _, e := range m.Events {
		if !isName(e.Request) || e.Instance != "" && !isID(e.Instance) || e.Kind >= kinds || e.Used < UsedUnknown || e.Used > maxUsed {
			return errors.New("peers: message with an event that says nothing")
		}
	}
	return nil
}

func (m *Message) checkClaims() error {
	if len(m.Claims) > MaxClaims {
		return fmt.Errorf("peers: message of %d claims, at most %d", len(m.Claims), MaxClaims)
	}
	for i := range m.Claims {
		c := &m.Claims[i]
		if !isName(c.Model) || !isID(c.Tenant) || i > 0 && m.Claims[i-1].compare(c) >= 0 {
			return errors.New("peers: message's claims are not in order, each once")
		}
		if c.Weight < 1 || c.Weight > maxWeight || c.Tokens < 1 || c.Tokens > maxTokens {
			return fmt.Errorf("peers: message of a claim of weight %d and %d tokens", c.Weight, c.Tokens)
		}
	}
	return nil
}

func (m *Message) checkEvidence() error {
	if len(m.Evidence) > MaxEvidence {
		return fmt.Errorf("peers: message of evidence on %d canaries, at most %d", len(m.Evidence), MaxEvidence)
	}
	for i := range m.Evidence {
		e := &m.Evidence[i]
		if !isName(e.Model) || !isName(e.Canary) || !isID(e.Split) || i > 0 && m.Evidence[i-1].compare(e) >= 0 {
			return errors.New("peers: message's evidence is not in order, each canary once")
		}
		if e.Began <= 0 || e.Compared < 0 || len(e.Logs) > MaxLogs || slices.ContainsFunc(e.Logs, isNoNumber) {
			return errors.New("peers: message of evidence that says nothing")
		}
	}
	return nil
}

func (m *Message) checkUses() error {
	if len(m.Uses) > MaxUses {
		return fmt.Errorf("peers: message of %d uses, at most %d", len(m.Uses), MaxUses)
	}
	for i := range m.Uses {
		u := &m.Uses[i]
		if !isID(u.Tenant) || i > 0 && m.Uses[i-1].Tenant >= u.Tenant || u.Count == 0 || u.Requests.Abs() > maxUse || u.Tokens.Abs() > maxUse {
			return errors.New("peers: message's uses are not in order, each tenant's once")
		}
	}
	return nil
}

func isNoNumber(f float64) bool { return math.IsNaN(f) || math.IsInf(f, 0) }

func isID(s string) bool   { return s != "" && len(s) <= maxIDBytes }
func isName(s string) bool { return s != "" && len(s) <= MaxNameBytes }
