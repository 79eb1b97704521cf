package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
)

// stateStore is where controllers keep what they have decided, by its address.
type stateStore string

func (s *stateStore) flag(of *pflag.FlagSet) {
	of.StringVar((*string)(s), "state", cmp.Or(os.Getenv("MRGC_STATE"), "dynamodb:"), "state store: "+open.Forms+"; default $MRGC_STATE if that is set")
}

// with opens the store for as long as do takes.
func (s stateStore) with(ctx context.Context, do func(state.Store) error) (err error) {
	store, err := open.Store(ctx, string(s), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return do(store)
}

// led is who holds a lease or did last.
type led struct {
	Leader string `json:"leader,omitempty"`
	Token  int64  `json:"token,omitempty"`
}

func (l led) String() string { return cmp.Or(l.Leader, "nobody") }

// leaders gives who holds leases, in their order, as far as that can be read.
func leaders(ctx context.Context, store state.Store, leases ...string) ([]led, error) {
	keys := make([]state.Key, len(leases))
	for i, lease := range leases {
		keys[i] = state.LeaseKey(lease)
	}
	held, err := state.LeaseTable(store).GetMany(ctx, keys)
	all := make([]led, len(leases))
	for _, record := range held {
		all[slices.Index(keys, record.Key)] = led{record.Value.Holder, record.Value.Token}
	}
	return all, err
}

// printJournal prints a line for each action, the newest at the end.
func printJournal(w io.Writer, begin string, journal state.Journal) {
	for _, action := range slices.Concat(journal.Done, journal.Pending) {
		fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\n", begin, when(action.DecidedAt), action.What, action.Reason, outcome(action))
	}
}

func outcome(action state.Action) string {
	ended := !action.EndedAt.IsZero()
	switch {
	case ended && action.Error == "":
		return "done at " + when(action.EndedAt)
	case ended:
		return fmt.Sprintf("given up at %s after %d tries: %s", when(action.EndedAt), action.Tries, action.Error)
	case action.Error != "":
		return fmt.Sprintf("pending, tried %d times: %s", action.Tries, action.Error)
	}
	return "pending"
}

func when(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.UTC().Format("2006-01-02 15:04:05Z")
}
