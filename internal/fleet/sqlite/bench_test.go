package sqlite

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/mrgc/mrgc/internal/fleet"
)

// BenchmarkIdlePoll is what a watch costs five times a second while nothing
// changes.
func BenchmarkIdlePoll(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background()) // as in Watch: one that can end
	defer cancel()
	w := watcher{store: benchStore(b, 6)}
	defer w.disconnect()
	if _, err := w.poll(ctx); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.poll(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSnapshot(b *testing.B) {
	for _, size := range []int{6, 100} {
		b.Run(fmt.Sprintf("instances=%d", size), func(b *testing.B) {
			store := benchStore(b, size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := store.Snapshot(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkHeartbeat(b *testing.B) {
	store := benchStore(b, 6)
	b.ReportAllocs()
	for b.Loop() {
		if err := store.Heartbeat(context.Background(), fleet.Heartbeat{ID: "use1-0"}); err != nil {
			b.Fatal(err)
		}
	}
}

func benchStore(b *testing.B, size int) *Store {
	b.Helper()
	ctx := context.Background()
	store, err := Open(ctx, Config{Path: filepath.Join(b.TempDir(), "fleet.db")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = store.Close() })
	for i := range size {
		in := fleet.Instance{
			ID: fmt.Sprintf("use1-%d", i), Region: "use1", Address: "10.0.0.7:8080",
			Models: []string{"org/model"}, KeyIDs: []string{fmt.Sprintf("%016x", i)},
		}
		if err := store.Register(ctx, in); err != nil {
			b.Fatal(err)
		}
	}
	return store
}
