package controller_test

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/schema"
)

var _ = Describe("A region's minutes", func() {
	var (
		instances fleet.Store
		data      *memory.Data
		begin     = time.Date(2026, time.March, 14, 9, 26, 0, 0, time.UTC)
	)
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	register := func(ctx context.Context, id string, region fleet.Region, load fleet.Load, healthy bool) {
		GinkgoHelper()
		Expect(instances.Register(ctx, fleet.Instance{
			ID: id, Region: region, Address: "127.0.0.1:8080", Load: load, Health: fleet.Health{Enclave: healthy, Engine: healthy},
		})).To(Succeed())
	}
	rows := func(ctx context.Context) []state.Record[state.Minute] {
		GinkgoHelper()
		records, err := state.MinuteTable(data.Open()).List(ctx, state.MinutesOf("use1", begin))
		Expect(err).NotTo(HaveOccurred())
		return records
	}
	BeforeEach(func(ctx SpecContext) {
		var err error
		instances, err = sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(GinkgoT().TempDir(), "fleet.db")})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(instances.Close)
		data = memory.New(nil)
		register(ctx, "a", "use1", fleet.Load{Running: 4, Queued: 2, Slots: 8}, true)
		register(ctx, "b", "use1", fleet.Load{Slots: 8}, false)
		register(ctx, "c", "use2", fleet.Load{Running: 100, Slots: 100}, true)
	})

	It("are means of the samples of its own instances, and the worst lag, written when they are over", func(ctx SpecContext) {
		m := controller.NewMinutes(controller.Config{Region: "use1", Fleet: instances, Store: data.Open()})
		m.Sample(ctx, at(0))
		m.Lag("use2", 2*time.Second)
		m.Lag("use2", time.Second)
		Expect(instances.Heartbeat(ctx, fleet.Heartbeat{ID: "a", Load: fleet.Load{Running: 2, Slots: 8}, Health: fleet.Health{Enclave: true, Engine: true}})).To(Succeed())
		Expect(instances.SetDraining(ctx, "a", true)).To(Succeed())
		m.Sample(ctx, at(10))
		Expect(rows(ctx)).To(BeEmpty())
		m.Sample(ctx, at(60))
		m.Sample(ctx, at(70))
		Expect(rows(ctx)).To(HaveLen(1))
		row := rows(ctx)[0]
		Expect(row.Key.Sort).To(Equal("2026-03-14T09:26Z"))
		Expect(row.Value).To(Equal(state.Minute{
			Samples: 2, Instances: 2, Ready: 0.5, Draining: 0.5, Running: 3, Queued: 1, Slots: 16,
			Lag: map[fleet.Region]float64{"use2": 2},
		}))
	})

	It("are kept while they cannot be written, an hour of them, and written then", func(ctx SpecContext) {
		broken := &broken{Store: data.Open(), err: errors.New("away")}
		m := controller.NewMinutes(controller.Config{Region: "use1", Fleet: instances, Store: broken})
		for minute := range 71 {
			m.Sample(ctx, at(60*minute))
		}
		Expect(rows(ctx)).To(BeEmpty())
		broken.err = nil
		m.Sample(ctx, at(60*71))
		Expect(rows(ctx)).To(HaveLen(60))
		Expect(rows(ctx)[59].Key.Sort).To(Equal("2026-03-14T10:36Z"))
	})

	It("are published, too, and what does not get through there waits apart", func(ctx SpecContext) {
		var published []string
		away := errors.New("away")
		m := controller.NewMinutes(controller.Config{
			Region: "use1", Fleet: instances, Store: data.Open(),
			Publish: func(_ context.Context, region fleet.Region, minutes []state.Record[state.Minute]) error {
				for _, minute := range minutes {
					published = append(published, string(region)+" "+minute.Key.Sort)
				}
				return away
			},
		})
		m.Sample(ctx, at(0))
		m.Sample(ctx, at(60))
		away = nil
		m.Sample(ctx, at(120))
		m.Sample(ctx, at(180))
		first := "use1 2026-03-14T09:26Z"
		Expect(published).To(Equal([]string{first, first, "use1 2026-03-14T09:27Z", "use1 2026-03-14T09:28Z"}))
		Expect(rows(ctx)).To(HaveLen(3))
	})

	It("in which the fleet could not be read are left out", func(ctx SpecContext) {
		m := controller.NewMinutes(controller.Config{Region: "use1", Fleet: instances, Store: data.Open()})
		m.Sample(ctx, at(0))
		Expect(instances.Close()).To(Succeed())
		m.Sample(ctx, at(60))
		m.Sample(ctx, at(120))
		Expect(rows(ctx)).To(HaveLen(1))
	})
})

// broken is a store that cannot be written while err is not nil.
type broken struct {
	state.Store
	err error
}

func (b *broken) Replace(ctx context.Context, table schema.Table, writes []state.Write) error {
	if b.err != nil {
		return b.err
	}
	return b.Store.Replace(ctx, table, writes)
}
