package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
)

// washPoll is how often the store is asked whether a wash has ended.
const washPoll = 500 * time.Millisecond

// washWait waits for a wash of an instance that comes after what its newest row was.
type washWait struct {
	instance string
	table    state.Table[state.Wash]
	before   string // sort key of the newest row; empty: there was none
	progress io.Writer
	every    time.Duration // between two looks
}

// awaitWash opens the store and looks at what is there before a wash is ordered.
func awaitWash(ctx context.Context, address, instance string, progress io.Writer) (w *washWait, closeStore func() error, err error) {
	store, err := open.Store(ctx, cmp.Or(address, os.Getenv("MRGC_STATE"), "dynamodb:"), nil)
	if err != nil {
		return nil, nil, err
	}
	w = &washWait{instance: instance, table: state.WashTable(store), progress: progress, every: washPoll}
	newest, err := w.newest(ctx)
	if err != nil && !errors.Is(err, state.ErrNotWhole) {
		return nil, nil, errors.Join(err, store.Close())
	}
	if newest != nil {
		w.before = newest.Key.Sort
	}
	return w, store.Close, nil
}

func (w *washWait) newest(ctx context.Context) (*state.Record[state.Wash], error) {
	rows, err := w.table.List(ctx, state.Query{Partition: w.instance, Newest: true, Limit: 1})
	if len(rows) == 0 {
		return nil, err
	}
	return &rows[0], err
}

// wait gives the wash when it has ended. It says how it goes whenever that changes. A
// store that does not answer is asked again; when ctx ends the wash goes on.
func (w *washWait) wait(ctx context.Context) (recordedWash, error) {
	began, said := time.Now(), ""
	say := func(what string) {
		if what != said {
			fmt.Fprintf(w.progress, "%s: %s (%s)\n", w.instance, what, time.Since(began).Round(time.Second))
			said = what
		}
	}
	say("ordered, not recorded yet")
	pause := time.NewTicker(w.every)
	defer pause.Stop()
	for {
		row, err := w.newest(ctx)
		switch {
		case ctx.Err() != nil:
			return recordedWash{}, fmt.Errorf("no longer waiting; the wash of %s goes on: mrgc wash show %s says how it went", w.instance, w.instance)
		case errors.Is(err, state.ErrNotWhole):
			return recordedWash{}, err
		case err != nil:
			say("the state store does not answer: " + err.Error())
		case row == nil || row.Key.Sort <= w.before: // those before are not this one
		case row.Value.Open == state.WashWaiting:
			say("waits: " + row.Value.Reason)
		case row.Value.Open != "":
			say("under way")
		default:
			return recordedWash{ID: row.Key.Partition + "/" + row.Key.Sort, Wash: row.Value}, nil
		}
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
	}
}

// failure is what is to be said of a wash that has ended; nil: it has passed.
func (w recordedWash) failure(instance string) error {
	if w.Passed {
		return nil
	}
	return fmt.Errorf("the wash failed: %s; %s is in quarantine and takes no requests: mend what mrgc wash show %s shows, and order another (mrgc wash now %s --wait), or replace the instance",
		w.Reason, instance, w.ID, instance)
}

// nearest are those of some names that are likest to what was written, for a hint; at
// most three, and none that is of another kind.
func nearest(written string, names []string) (like []string) {
	for limit := 1; limit <= 2 && len(like) == 0; limit++ {
		for _, name := range names {
			if edits(written, name) <= limit {
				like = append(like, name)
			}
		}
	}
	if len(like) == 0 { // a part of one
		for _, name := range names {
			if strings.Contains(name, written) || strings.Contains(written, name) {
				like = append(like, name)
			}
		}
	}
	return like[:min(len(like), 3)]
}

// edits is how many letters have to be put in, taken out or changed to make one word of
// the other (Levenshtein's distance).
func edits(a, b string) int {
	before := make([]int, len(b)+1)
	for j := range before {
		before[j] = j
	}
	for i := range len(a) {
		now := make([]int, len(b)+1)
		now[0] = i + 1
		for j := range len(b) {
			change := before[j]
			if a[i] != b[j] {
				change++
			}
			now[j+1] = min(change, before[j+1]+1, now[j]+1)
		}
		before = now
	}
	return before[len(b)]
}

// hint says which names there are, the likest alone if there is one.
func hint(written string, names []string) string {
	if like := nearest(written, names); len(like) > 0 {
		return "did you mean " + strings.Join(like, " or ") + "?"
	}
	if len(names) == 0 {
		return "there are none"
	}
	return "there are " + strings.Join(names[:min(len(names), 20)], ", ")
}
