package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
)

// washer does the engine's part of its instance's full wash. The canary is a
// prompt of random words: it is in the engine's cache when asking for it a second
// time takes tokens from there, and that is how it is looked for. What the engine
// forgets it cannot reach any more; that its memory is overwritten takes a restart.
type washer struct {
	guard   *Guard
	pause   time.Duration // between two tries to plant
	control string        // path of the engine's control socket; empty: it has none

	mu     sync.Mutex
	canary []byte // guarded by mu: body of the request that has it; nil: none is planted
	salt   string // guarded by mu: that it is under
}

// Bounds on planting: a slot of llama.cpp's that another request takes between two
// of ours has forgotten the canary, which is to be tried again; and for as long as
// every slot is doubted (slotTable), none is seen to keep one. Who opens streams and
// hangs up could have them all doubted for ever: after some tries one is kept for the
// canary, which takes it from requests for the rest of its doubt.
const (
	plantTries = 180
	keepAfter  = 20
	plantPause = 500 * time.Millisecond
	maxAnswer  = 1 << 20
)

// canaryWords are words of 24 random bits: few, because reading them takes the
// engine's time from requests, and enough for an engine to keep them. vLLM keeps
// whole blocks only, mostly of 16 tokens, but of 128 on CPUs and of whatever
// --block-size says: a canary under a salt that is not kept is followed by one twice
// as long, up to the most.
const (
	canaryWords           = 4
	canaryWordsSalted     = 16
	canaryWordsSaltedMost = 1024
)

// serve does one step; path is one of api's PathWash constants.
func (w *washer) serve(out http.ResponseWriter, r *http.Request, path string) (outcome string) {
	w.mu.Lock() // one wash at a time: another instance's, where they share an engine
	defer w.mu.Unlock()
	var detail string
	err := errors.New("how this engine forgets is not known: its guard has --cache none")
	switch {
	case path == api.PathWashRestart: // whatever its cache is, it forgets by that
		detail, err = w.restart(r.Context())
	case w.guard.cfg.Cache == api.CacheNone:
	case path == api.PathWashPlant:
		detail, err = w.plant(r.Context())
	case path == api.PathWashClear:
		detail, err = w.clear(r.Context())
	case path == api.PathWashCheck:
		detail, err = w.check(r.Context())
	}
	if err != nil {
		api.Errorf(http.StatusBadGateway, "wash_failed", "%v", err).Write(out)
		return "wash failed"
	}
	out.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(out).Encode(api.WashDone{Detail: detail}) // a parent that has gone asks again
	return "complete"
}

// plant asks for a new canary until the engine is seen to remember it.
func (w *washer) plant(ctx context.Context) (string, error) {
	words := canaryWords
	if w.guard.cfg.Cache == api.CacheSalt {
		words = canaryWordsSalted
	}
	if err := w.newCanary(ctx, words); err != nil {
		return "", err
	}
	defer w.guard.cache.keep("")
	for try := 1; ; try++ {
		if try == keepAfter {
			w.guard.cache.keep(w.salt)
		}
		if _, err := w.cached(ctx); err != nil {
			return "", err
		}
		found, err := w.cached(ctx)
		if err != nil {
			return "", err
		}
		if found > canaryNoise {
			return fmt.Sprintf("planted, and found again by %d cached tokens at try %d", found, try), nil
		}
		if try == plantTries {
			return "", errors.New("the engine does not remember a canary: whether it forgets one cannot be seen")
		}
		if w.guard.cfg.Cache == api.CacheSalt && words < canaryWordsSaltedMost {
			words *= 2
			if err := w.newCanary(ctx, words); err != nil {
				return "", err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(w.pause):
		}
	}
}

// check looks for the canary.
func (w *washer) check(ctx context.Context) (string, error) {
	if w.canary == nil {
		return "", errors.New("no canary is planted: the guard has been started since")
	}
	found, err := w.cached(ctx)
	if err != nil {
		return "", err
	}
	if found > canaryNoise {
		return "", fmt.Errorf("the canary is still there: %d of its tokens are cached", found)
	}
	w.canary = nil
	return "the canary is not found any more", nil
}

// canaryNoise are tokens that any two prompts begin with alike.
const canaryNoise = 1

// newCanary makes a prompt of n words that nobody else sends, under a salt that nobody
// else has.
func (w *washer) newCanary(ctx context.Context, n int) error {
	model, err := w.model(ctx)
	if err != nil {
		return err
	}
	words := make([]string, n)
	for i := range words {
		var b [3]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		words[i] = hex.EncodeToString(b[:])
	}
	w.salt = "wash-" + rand.Text()
	w.canary, err = json.Marshal(map[string]any{"model": model, "prompt": strings.Join(words, " "), "max_tokens": 1, "temperature": 0})
	return err
}

// model is the name of the first that the engine serves.
func (w *washer) model(ctx context.Context) (string, error) {
	var models struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := w.ask(ctx, http.MethodGet, "/v1/models", nil, &models); err != nil {
		return "", err
	}
	if len(models.Data) == 0 {
		return "", errors.New("the engine names no model")
	}
	return models.Data[0].ID, nil
}

// cached asks for the canary, and gives how many of its tokens were cached.
func (w *washer) cached(ctx context.Context) (int, error) {
	var answer struct {
		Usage struct {
			Details *struct {
				Cached int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		} `json:"usage"`
	}
	entered, err := w.guard.cache.enter(ctx, w.salt, bytes.NewReader(w.canary), int64(len(w.canary)))
	switch {
	case errors.Is(err, errSlots):
		return 0, err
	case err != nil:
		return 0, errors.New("the engine does not answer")
	}
	end := endVanished
	defer func() { entered.leave(end) }()
	if err := w.ask(ctx, http.MethodPost, "/v1/completions", entered.body, &answer); err != nil {
		return 0, err
	}
	end = endAnswered
	if answer.Usage.Details == nil {
		return 0, errors.New("the engine does not say how many tokens were cached (vLLM: --enable-prompt-tokens-details)")
	}
	return answer.Usage.Details.Cached, nil
}

// clear has the engine forget.
func (w *washer) clear(ctx context.Context) (string, error) {
	if w.guard.cfg.Cache == api.CacheSlots {
		return w.eraseSlots(ctx)
	}
	// vLLM forgets nothing while requests run, answers 200 all the same, and says so in
	// the answer alone. Those that run are preempted, therefore: they read their prompts
	// again and go on. External is what it may have put into the host's memory.
	var done struct {
		Success *bool `json:"success"`
	}
	err := w.ask(ctx, http.MethodPost, "/reset_prefix_cache?reset_running_requests=true&reset_external=true", nil, &done)
	var status *statusError
	switch {
	case errors.As(err, &status) && status.code == http.StatusNotFound:
		return "", fmt.Errorf("%w: it cannot be told to forget (vLLM: VLLM_SERVER_DEV_MODE=1)", err)
	case err != nil:
		return "", err
	case done.Success == nil || !*done.Success:
		return "", errors.New("the engine does not say that it has reset its prefix cache")
	}
	return "reset_prefix_cache: what was cached is unreachable, and its memory free to be overwritten", nil
}

// eraseSlots erases llama.cpp's slots; one that is working is erased as soon as it
// is not.
func (w *washer) eraseSlots(ctx context.Context) (string, error) {
	var slots []struct {
		ID int `json:"id"`
	}
	if err := w.ask(ctx, http.MethodGet, "/slots", nil, &slots); err != nil {
		return "", err
	}
	if len(slots) == 0 {
		return "", errors.New("the engine names no slots")
	}
	erased := 0
	for _, slot := range slots {
		var done struct {
			Erased *int `json:"n_erased"`
		}
		if err := w.ask(ctx, http.MethodPost, fmt.Sprintf("/slots/%d?action=erase", slot.ID), strings.NewReader("{}"), &done); err != nil {
			return "", err
		}
		if done.Erased == nil {
			return "", fmt.Errorf("the engine does not say that it has erased slot %d", slot.ID)
		}
		erased += *done.Erased
	}
	return fmt.Sprintf("slots erase: %d tokens of %d slots are unreachable, and their memory free to be overwritten", erased, len(slots)), nil
}

// statusError is an engine's refusal of something of the guard's own.
type statusError struct {
	path string
	code int
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the engine answers %s with status %d", e.path, e.code)
}

// ask asks the engine something of the guard's own. The errors quote nothing that
// the engine has said.
func (w *washer) ask(ctx context.Context, method, target string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, w.guard.base+target, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	path, _, _ := strings.Cut(target, "?")
	resp, err := w.guard.upstream.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("the engine does not answer %s", path)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	defer clear(answer)
	switch {
	case err != nil:
		return fmt.Errorf("the engine breaks off its answer to %s", path)
	case resp.StatusCode != http.StatusOK:
		return &statusError{path, resp.StatusCode}
	case into == nil:
		return nil
	}
	if json.Unmarshal(answer, into) != nil {
		return fmt.Errorf("the engine's answer to %s is not JSON that is understood", path)
	}
	return nil
}
