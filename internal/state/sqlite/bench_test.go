package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/internal/state/sqlite"
)

// What a controller does all the time: it reads rows by their keys, and writes one.
func BenchmarkStore(b *testing.B) {
	store, err := sqlite.Open(b.Context(), sqlite.Config{Path: filepath.Join(b.TempDir(), "state.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	key := state.Key{Partition: "use1"}
	var version int64
	write := func() {
		if version, err = store.Write(b.Context(), schema.RoutingState, state.Write{Key: key, Fields: []byte(`{"a":1}`), Version: version}); err != nil {
			b.Fatal(err)
		}
	}
	write()
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if _, err := store.Get(b.Context(), schema.RoutingState, key); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			write()
		}
	})
}
