package sqlite_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	fleetsqlite "github.com/mrgc/mrgc/internal/fleet/sqlite"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/internal/state/sqlite"
	"github.com/mrgc/mrgc/internal/state/statetest"
)

func TestSQLite(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/state/sqlite")
}

var _ = statetest.Describe("sqlite", func() statetest.Open {
	path := filepath.Join(GinkgoT().TempDir(), "state.db")
	return func(ctx context.Context) (state.Store, error) { return sqlite.Open(ctx, sqlite.Config{Path: path}) }
})

var _ = Describe("The file", func() {
	It("is not a fleet's", func(ctx SpecContext) {
		path := filepath.Join(GinkgoT().TempDir(), "fleet.db")
		fleet, err := fleetsqlite.Open(ctx, fleetsqlite.Config{Path: path})
		Expect(err).NotTo(HaveOccurred())
		Expect(fleet.Close()).To(Succeed())
		_, err = sqlite.Open(ctx, sqlite.Config{Path: path})
		Expect(err).To(MatchError(And(HavePrefix("state store "+path), ContainSubstring("name another path"))))
	})

	It("keeps what was written when it is opened again", func(ctx SpecContext) {
		path := filepath.Join(GinkgoT().TempDir(), "state.db")
		key := state.Key{Partition: "use1"}
		for want := range int64(3) {
			store, err := sqlite.Open(ctx, sqlite.Config{Path: path})
			Expect(err).NotTo(HaveOccurred())
			_, err = store.Write(ctx, schema.RoutingState, state.Write{Key: key, Fields: []byte(`{}`), Version: want})
			Expect(err).NotTo(HaveOccurred())
			Expect(store.Close()).To(Succeed())
		}
	})

	It("does not grow with what has expired", func(ctx SpecContext) {
		store, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(GinkgoT().TempDir(), "state.db")})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		old := state.Write{Key: state.Key{Partition: "minute/use1", Sort: "1"}, Fields: []byte(`{}`), Expires: time.Now().Add(-time.Second)}
		Expect(store.Replace(ctx, schema.Metrics, []state.Write{old})).To(Succeed())
		old.Key.Sort = "2"
		Expect(store.Replace(ctx, schema.Metrics, []state.Write{old})).To(Succeed())
		Expect(store.Rows(ctx)).To(Equal(1))
	})
})
