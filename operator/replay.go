package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/routing"
)

// Replay decides a trace's records again under a policy; nil is each record's
// own.
func Replay(trace io.Reader, policy *routing.Policy) (decision.Result, error) {
	return replay(decision.NewReplay(policy), trace)
}

// Replay does that with the routers' last n decisions each, one router after
// the other.
func (a *Admins) Replay(ctx context.Context, n int, policy *routing.Policy) (decision.Result, error) {
	all := decision.NewReplay(policy)
	var result decision.Result
	for _, admin := range a.urls {
		resp, err := a.page(ctx, admin, fmt.Sprintf("/decisions?last=%d", n))
		if err != nil {
			return result, err
		}
		if resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("HTTP %d: is this a router's admin, of this version?", resp.StatusCode)
		} else {
			result, err = replay(all, resp.Body)
		}
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return result, fmt.Errorf("%s: %w", admin, err)
		}
	}
	return result, nil
}

func replay(all *decision.Replay, trace io.Reader) (decision.Result, error) {
	reader := decision.NewReader(trace)
	for {
		record, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return all.Result(), nil
		}
		if err != nil {
			return all.Result(), err
		}
		all.Add(record)
	}
}

// Exact says what is wrong when a decision came out otherwise under its own
// policy.
func Exact(r decision.Result) error {
	if r.Differing == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d decisions come out otherwise under the policy that made them, request %q first: the trace has been changed, "+
		"or another version of mrgc made it", r.Differing, r.Same, clean(r.FirstDiffering))
}

// PrintReplay writes a result for people.
func PrintReplay(w io.Writer, r decision.Result) error {
	fmt.Fprintf(w, "%d decisions again, by policy %s, each with what was known then; %d refusals left out\n", r.Decisions, r.Policy, r.Skipped)
	if r.Same > 0 {
		fmt.Fprintf(w, "%d were made by that policy: %d come out the same to the last bit\n", r.Same, r.Same-r.Differing)
	}
	share := 0.0
	if r.Decisions > 0 {
		share = float64(r.Elsewhere) / float64(r.Decisions)
	}
	fmt.Fprintf(w, "%d (%.1f%%) would have gone elsewhere\n\n", r.Elsewhere, 100*share)
	t := newTable(w)
	t.row("INSTANCE", "RECORDED", "REPLAYED", "CHANGE")
	for _, c := range r.Instances {
		t.row(c.Instance, fmt.Sprint(c.Recorded), fmt.Sprint(c.Replayed), fmt.Sprintf("%+d", c.Replayed-c.Recorded))
	}
	t.row()
	t.row("FIRST TOKEN", "RECORDED", "REPLAYED", "CHANGE")
	was, is := r.FirstToken.Recorded, r.FirstToken.Replayed
	for _, of := range []struct {
		name    string
		was, is float64
	}{{"mean", was.Mean, is.Mean}, {"p50", was.P50, is.P50}, {"p99", was.P99, is.P99}} {
		t.row(of.name, age(of.was), age(of.is), fmt.Sprintf("%+.1f ms", 1000*(of.is-of.was)))
	}
	return t.Flush()
}
