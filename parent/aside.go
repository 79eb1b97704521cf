package parent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/parent/wash"
)

// announce notes and stores that the wash is under way, so that a parent that finds it
// after a crash knows.
func (w *washer) announce(ctx context.Context, a wash.Action) (string, error) {
	for {
		err := w.note(a)
		if err == nil {
			err = w.write(ctx, a.Row)
		}
		if err == nil {
			return "it is on record", nil
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(recordAgain):
		}
	}
}

// plantCanary has the guard do it; where the engine is about to be restarted, once that
// answers: a restart that was cut off may not have ended yet.
func (w *washer) plantCanary(ctx context.Context) (string, error) {
	for w.now().Restart {
		_, err := get(ctx, w.guard, "https://guard/health", maxMetricsBytes)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("engine: %w", err)
		case <-time.After(recordAgain):
		}
	}
	return w.askGuard(ctx, api.PathWashPlant)
}

// stepAside waits until the fleet knows that the instance takes no requests, and until
// what was sent before can be there.
func (w *washer) stepAside(ctx context.Context) (string, error) {
	began := time.Now()
	told, err := w.told(ctx, func(keyIDs []string) bool { return len(keyIDs) == 0 })
	if err != nil {
		return "", errors.New("the fleet could not be told that the instance takes no requests")
	}
	after := time.Since(began).Round(time.Millisecond)
	if err := w.linger(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("the fleet %s of it after %s", told, after), nil
}

// told waits until what the fleet was told last of the instance's keys is as it has to be.
func (w *washer) told(ctx context.Context, is func(keyIDs []string) bool) (how string, err error) {
	w.p.probeNow()
	poll := time.NewTicker(standbyPoll)
	defer poll.Stop()
	for {
		if known := w.p.known.Load(); known != nil && is(known.keyIDs) {
			return "knew", nil
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-w.p.leaving: // it is not to be told any more
			return "is left, and was not told,", nil
		case <-poll.C:
		}
	}
}

// awaitIdle waits until nothing runs. What comes is sent elsewhere by now. What has not
// ended by half of the time that there is will be cut by the engine's restart: see
// stopOld.
func (w *washer) awaitIdle(ctx context.Context) (string, error) {
	began := time.Now()
	patience := time.NewTimer(half(ctx))
	defer patience.Stop()
	for {
		w.mu.Lock()
		running, changed := w.running, w.changed
		w.mu.Unlock()
		if running == 0 {
			return fmt.Sprintf("the last request ended after %s", time.Since(began).Round(time.Millisecond)), nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%d requests do not end", running)
		case <-patience.C:
			return fmt.Sprintf("%d requests have not ended after %s, and are cut", running, time.Since(began).Round(time.Millisecond)), nil
		case <-changed:
		}
	}
}

// restartEngine has the guard restart the engine, while it is this instance's turn.
func (w *washer) restartEngine(ctx context.Context) (string, error) {
	poll := time.NewTicker(standbyPoll)
	defer poll.Stop()
	for !w.turn.Held() {
		select {
		case <-ctx.Done():
			return "", errors.New("the turn to restart the engine was lost")
		case <-poll.C:
		}
	}
	return w.askGuard(ctx, api.PathWashRestart)
}

// stepBackWait bounds how long a wash that has passed waits until the fleet knows.
const stepBackWait = 10 * time.Second

// stepBack lets requests come again. A store that is away is no fault of the wash: the
// fleet is told when it is back.
func (w *washer) stepBack(ctx context.Context) (string, error) {
	began := time.Now()
	waiting, cancel := context.WithTimeout(ctx, stepBackWait)
	defer cancel()
	present, _ := w.p.enclaves.now()
	told, err := w.told(waiting, func(keyIDs []string) bool { return len(keyIDs) > 0 && slices.Equal(keyIDs, *present.keyIDs.Load()) })
	if err != nil {
		return fmt.Sprintf("the fleet has yet to be told: it could not be within %s", stepBackWait), nil
	}
	return fmt.Sprintf("the fleet %s of it after %s", told, time.Since(began).Round(time.Millisecond)), nil
}
