package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/api"
)

// Caches are the ways in which a guard keeps tenants apart in its engine's prefix
// cache, where the time to the first token would tell one what another has asked.
// The enclave names a salt for each request; the guard says it in the engine's
// words.
var Caches = []string{api.CacheSalt, api.CacheSlots, api.CacheNone}

// cache prepares completions for an engine's prefix cache.
type cache interface {
	// enter waits until the engine may have the request, and gives the body that it
	// gets. body is the enclave's JSON, an object. The errors are errSalt, errBody,
	// what reading body gives, what asking the engine gives, or ctx's.
	enter(ctx context.Context, salt string, body io.Reader, length int64) (*entry, error)
	// keep has the engine remember what comes next under a salt, as far as others keep it
	// from that; empty: none any more.
	keep(salt string)
	// queued is how many requests wait to enter.
	queued() int
	// restarted says that another engine is there, or may be.
	restarted()
}

// entry is a request that the engine may have. Its taker calls leave when the
// engine has been asked, or will not be.
type entry struct {
	body   io.ReadCloser
	length int64 // -1: not known
	leave  func(ending)
}

var (
	errSalt = errors.New("the request names no cache salt")
	errBody = errors.New("the request's body is no JSON object")
	// errSlots is an engine that has fewer slots than the guard was told.
	errSlots = errors.New("the engine has too few slots")
)

// newCache is the cache of a kind. slots counts for [api.CacheSlots] alone, and
// total asks the engine how many it has.
func newCache(kind string, slots int, total func(context.Context) (int, error)) (cache, error) {
	switch kind {
	case api.CacheSalt:
		return saltedCache{}, nil
	case api.CacheSlots:
		if slots < 1 {
			return nil, errors.New("engine guard: a cache of slots needs to know how many the engine has")
		}
		return &slottedCache{slots: newSlotQueue(slots), count: slots, total: total}, nil
	case api.CacheNone:
		return plainCache{}, nil
	default:
		return nil, fmt.Errorf("engine guard: cache %q: want one of %s", kind, strings.Join(Caches, ", "))
	}
}

// plainCache is that of an engine that is told nothing.
type plainCache struct{}

func (plainCache) enter(_ context.Context, _ string, body io.Reader, length int64) (*entry, error) {
	return &entry{body: io.NopCloser(body), length: length, leave: func(ending) {}}, nil
}

func (plainCache) keep(string) {}

func (plainCache) queued() int { return 0 }

func (plainCache) restarted() {}

// saltedCache is vLLM's: a prefix is found under the salt that it was computed
// under, and under no other.
type saltedCache struct{}

func (saltedCache) enter(_ context.Context, salt string, body io.Reader, length int64) (*entry, error) {
	if !validSalt(salt) {
		return nil, errSalt
	}
	body, length, err := insert(`"cache_salt":"`+salt+`",`, body, length)
	return &entry{body: io.NopCloser(body), length: length, leave: func(ending) {}}, err
}

func (saltedCache) keep(string) {} // others have salts of their own

func (saltedCache) queued() int { return 0 }

func (saltedCache) restarted() {}

// slottedCache is llama.cpp's. Nobody else may use the engine: what another guard
// asks of a slot this one does not know of.
type slottedCache struct {
	slots   *slotQueue
	count   int
	total   func(context.Context) (int, error)
	counted atomic.Bool // the engine has as many
}

// check asks an engine whose slots have not been counted. A slot that is not there
// would be another one, of llama.cpp's choice.
func (c *slottedCache) check(ctx context.Context) error {
	if c.counted.Load() {
		return nil
	}
	total, err := c.total(ctx)
	if err != nil {
		return err
	}
	if total < c.count {
		return fmt.Errorf("%w: %d, and the guard was told %d", errSlots, total, c.count)
	}
	c.counted.Store(true)
	return nil
}

func (c *slottedCache) enter(ctx context.Context, salt string, body io.Reader, length int64) (*entry, error) {
	if !validSalt(salt) {
		return nil, errSalt
	}
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	content, err := readAll(body, length)
	if err != nil {
		return nil, err
	}
	all, err := spreads(content)
	if err != nil {
		clear(content)
		return nil, err
	}
	g, err := c.slots.take(ctx, salt, all)
	if err != nil {
		clear(content)
		return nil, err
	}
	e := &entry{leave: func(end ending) {
		if end != endAnswered {
			c.counted.Store(false) // another engine may be about to start
		}
		c.slots.release(g, salt, end, time.Now())
	}}
	told := fmt.Sprintf(`"id_slot":%d,"cache_prompt":%t,`, g.slot, g.reuse)
	inserted, length, err := insert(told, bytes.NewReader(content), int64(len(content)))
	if err != nil {
		e.leave(endRefused)
		clear(content)
		return nil, err
	}
	e.body, e.length = &wiped{Reader: inserted, content: content}, length
	return e, nil
}

func (c *slottedCache) keep(salt string) { c.slots.keep(salt) }

func (c *slottedCache) queued() int { return c.slots.queued() }

// restarted has the slots counted again. What the table says that they may hold
// stays: a slot that holds nothing may be reused under any salt, and a canary would
// else be looked for in no slot, and not be found in an engine that was not restarted.
func (c *slottedCache) restarted() { c.counted.Store(false) }

// spreads says whether llama.cpp makes several requests of one: for choices in
// slots of which only the first is ours to choose, for a list of prompts one after
// the other, of which some may have failed in an answer that is whole.
func spreads(content []byte) (bool, error) {
	var request struct {
		N      several `json:"n"`
		BestOf several `json:"best_of"`
		Prompt listed  `json:"prompt"`
	}
	if json.Unmarshal(content, &request) != nil {
		return false, errBody
	}
	return bool(request.N || request.BestOf) || bool(request.Prompt), nil
}

// several is whether a member, or any other of nearly its name, is a number but 1.
type several bool

func (s *several) UnmarshalJSON(raw []byte) error {
	*s = *s || string(raw) != "1" && string(raw) != "null"
	return nil
}

// listed is whether one is a list.
type listed bool

func (l *listed) UnmarshalJSON(raw []byte) error {
	*l = *l || raw[0] == '['
	return nil
}

// validSalt says whether a salt is text that JSON takes as it is.
func validSalt(salt string) bool {
	const most = 128
	other := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_/", r)
	}
	return salt != "" && len(salt) <= most && strings.IndexFunc(salt, other) < 0
}

// insert puts members in front of an object's own. The enclave has seen to it that
// these have other names.
func insert(members string, body io.Reader, length int64) (io.Reader, int64, error) {
	const start = `{"`
	read := make([]byte, len(start))
	if _, err := io.ReadFull(body, read); err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return nil, 0, err
		}
		return nil, 0, errBody
	}
	if string(read) != start {
		return nil, 0, errBody
	}
	if length >= 0 {
		length += int64(len(members))
	}
	return io.MultiReader(strings.NewReader("{"+members+`"`), body), length, nil
}

// readAll reads a body of a length, -1 for one that is not known, into memory that
// it leaves no copy of.
func readAll(body io.Reader, length int64) ([]byte, error) {
	if length >= 0 {
		content := make([]byte, length)
		_, err := io.ReadFull(body, content)
		return content, err
	}
	return io.ReadAll(body)
}

// wiped is a body that is gone once the transport has done with it.
type wiped struct {
	io.Reader
	content []byte
}

func (w *wiped) Close() error {
	w.Reader = strings.NewReader("")
	clear(w.content)
	return nil
}
