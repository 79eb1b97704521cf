package parent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/parent/wash"
)

// do does one action of a wash, and says what it found.
func (w *washer) do(ctx context.Context, a wash.Action) (detail string, err error) {
	switch a.Kind {
	case wash.Announce:
		return w.announce(ctx, a)
	case wash.PlantCanary:
		return w.plantCanary(ctx)
	case wash.KeepTurn:
		return w.turn.Keep(ctx)
	case wash.StepAside:
		return w.stepAside(ctx)
	case wash.AwaitIdle:
		return w.awaitIdle(ctx)
	case wash.RestartEngine:
		return w.restartEngine(ctx)
	case wash.StepBack:
		return w.stepBack(ctx)
	case wash.ClearGPU:
		return w.askGuard(ctx, api.PathWashClear)
	case wash.CheckModel:
		return w.config.CheckModel(ctx, w.settings().Strict)
	case wash.StartStandby:
		return w.startStandby(ctx)
	case wash.SwitchOver:
		return w.switchOver(ctx)
	case wash.StopOld:
		return w.stopOld(ctx)
	case wash.CheckHealth:
		return w.checkHealth(ctx)
	case wash.CheckCanary:
		return w.askGuard(ctx, api.PathWashCheck)
	default:
		return "", fmt.Errorf("%s: no such action", a.Kind)
	}
}

const maxWashAnswerBytes = 16 << 10

// askGuard has the engine's guard do its part, which this parent must not: it sees
// no prompt, not even a canary's.
func (w *washer) askGuard(ctx context.Context, path string) (detail string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://guard"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := w.guard.Do(req)
	if err != nil {
		return "", fmt.Errorf("engine's guard: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxWashAnswerBytes))
	if err != nil {
		return "", fmt.Errorf("engine's guard: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("engine's guard: %w", api.ParseError(resp.StatusCode, body))
	}
	var done api.WashDone
	if err := json.Unmarshal(body, &done); err != nil {
		return "", fmt.Errorf("engine's guard: %w", err)
	}
	if done.Detail == "" {
		return "", errors.New("engine's guard: it does not say what it has done")
	}
	return done.Detail, nil
}

// standbyPoll is how often a fresh enclave is asked whether it answers.
const standbyPoll = 20 * time.Millisecond

// startStandby starts a fresh enclave beside the present one, gives it what it
// needs, and has its attestation checked.
func (w *washer) startStandby(ctx context.Context) (detail string, err error) {
	if w.left == nil {
		w.left = w.p.enclaves.retire()
	}
	if w.left != nil { // of a wash that has failed
		if err := w.p.endEnclave(ctx, w.left); err != nil {
			return "", fmt.Errorf("the enclave of before is still there: %w", err)
		}
		w.left = nil
	}
	present, _ := w.p.enclaves.now()
	w.begun = time.Now()
	if w.standby, err = w.p.launch(1 - present.place); err != nil {
		return "", err
	}
	for {
		recipients, err := w.p.supply(ctx, w.standby)
		if err == nil {
			return w.checkFresh(ctx, present, recipients)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the fresh enclave does not answer: %w", err)
		case <-w.standby.started.Ended():
			return "", fmt.Errorf("the fresh enclave has died: %w", err)
		case <-time.After(standbyPoll):
		}
	}
}

// checkFresh checks that the standby is attested, and not by what the present
// enclave has shown.
func (w *washer) checkFresh(ctx context.Context, present *held, recipients api.Recipients) (string, error) {
	if w.p.config.Credentials != nil {
		if err := w.p.handCredentialsOnce(ctx, w.standby); err != nil {
			return "", err
		}
	}
	for _, r := range recipients.Recipients {
		if err := w.config.Attested(r.Claims, r.Attestation, time.Now()); err != nil {
			return "", fmt.Errorf("the fresh enclave's attestation: %w", err)
		}
	}
	own := *w.standby.keyIDs.Load()
	fresh := slices.ContainsFunc(own, func(kid string) bool { return !present.holds([]string{kid}) })
	if !fresh { // keys that a fleet holds together are the same in both; one's own cannot be
		return "", errors.New("the fresh enclave has no key of its own: it is the present one")
	}
	return fmt.Sprintf("a fresh enclave attested itself %s after its start", time.Since(w.begun).Round(time.Millisecond)), nil
}

// switchOver sends new requests to the standby, and waits until the fleet knows its
// keys.
func (w *washer) switchOver(ctx context.Context) (string, error) {
	began := time.Now()
	w.p.enclaves.switchTo(w.standby)
	pause := time.Since(began)
	next := w.standby
	w.standby = nil
	if w.now().Aside() { // the fleet is told when the instance steps back
		return "nothing was sent to either", nil
	}
	told, err := w.told(ctx, func(keyIDs []string) bool { return slices.Equal(keyIDs, *next.keyIDs.Load()) })
	if err != nil {
		return "", errors.New("the fleet could not be told of the new keys")
	}
	return fmt.Sprintf("requests were held for %s; the fleet %s the new keys after %s", pause, told, time.Since(began).Round(time.Millisecond)), nil
}

// linger waits as long as [Wash.Linger] says.
func (w *washer) linger(ctx context.Context) error {
	present, _ := w.p.enclaves.now()
	over := time.NewTimer(w.config.Linger)
	defer over.Stop()
	poll := time.NewTicker(standbyPoll)
	defer poll.Stop()
	for {
		if known := w.p.known.Load(); w.settings().Strict && known != nil && present.shown.Load() > known.since.UnixNano() {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-over.C:
			return nil
		case <-poll.C:
		}
	}
}

// stopOld lets what is under way in the old enclave end, and ends it. What has not
// ended by half of the step's time is cut: it is a tenant's to read slowly, and not to
// make a wash fail by that, after which nobody is served here.
func (w *washer) stopOld(ctx context.Context) (string, error) {
	if !w.now().Aside() {
		if err := w.linger(ctx); err != nil {
			return "", err
		}
	}
	old := w.p.enclaves.retire()
	if old == nil {
		return "", errors.New("there is no old enclave")
	}
	w.left = old
	began, ended := time.Now(), "ended"
	patient, cancel := context.WithTimeout(ctx, half(ctx))
	defer cancel()
	switch {
	case old.idle(patient) == nil:
	case ctx.Err() != nil:
		return "", fmt.Errorf("requests in the old enclave do not end: %w", context.Cause(ctx))
	default:
		ended = "was cut"
	}
	waited := time.Since(began)
	if err := w.p.endEnclave(ctx, old); err != nil {
		return "", fmt.Errorf("the old enclave does not end: %w", err)
	}
	w.left = nil
	return fmt.Sprintf("the old enclave's last request %s after %s, and it is gone", ended, waited.Round(time.Millisecond)), nil
}

// half is half of the time until ctx ends.
func half(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline() // every action has one
	return time.Until(deadline) / 2
}

// checkHealth asks the new enclave, the engine and the GPUs how they are.
func (w *washer) checkHealth(ctx context.Context) (string, error) {
	present, _ := w.p.enclaves.now()
	if _, err := w.p.supply(ctx, present); err != nil {
		return "", fmt.Errorf("enclave: %w", err)
	}
	if _, err := get(ctx, w.guard, "https://guard/health", maxMetricsBytes); err != nil {
		return "", fmt.Errorf("engine: %w", err)
	}
	if w.p.config.ReadGPU == nil {
		return "enclave and engine answer; no GPU is seen", nil
	}
	w.p.gauges.asking.Lock()
	gpu, err := w.p.config.ReadGPU()
	w.p.gauges.asking.Unlock()
	if err == nil {
		err = gpu.Validate()
	}
	if err != nil {
		return "", fmt.Errorf("GPU: %w", err)
	}
	return "enclave, engine and GPU answer", nil
}

// dropStandby ends a fresh enclave whose wash has failed. If requests go there
// already, they go back to the one before.
func (w *washer) dropStandby(ctx context.Context) {
	dropped := w.standby
	w.standby = nil
	if dropped == nil {
		dropped = w.p.enclaves.back()
	}
	if dropped == nil {
		return
	}
	if err := w.p.endEnclave(ctx, dropped); err != nil {
		w.p.log.Error("a fresh enclave that is not used does not end", "error", err)
	}
}
