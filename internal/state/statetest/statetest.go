// Package statetest is the contract of [state.Store] as a test suite: every
// implementation passes it.
//
//	var _ = statetest.Describe("sqlite", func() statetest.Open {
//		path := filepath.Join(GinkgoT().TempDir(), "state.db")
//		return func(ctx context.Context) (state.Store, error) {
//			return sqlite.Open(ctx, sqlite.Config{Path: path})
//		}
//	})
package statetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// Open opens a handle on the data of one spec; every handle of a spec sees the
// same data.
type Open func(ctx context.Context) (state.Store, error)

// Describe registers the suite for one implementation. newData is called before
// each spec, for data of that spec alone; the suite closes what it opens.
func Describe(name string, newData func() Open) bool {
	return ginkgo.Describe(name+" as a state.Store", func() {
		b := &bench{}
		ginkgo.BeforeEach(func(ctx ginkgo.SpecContext) {
			b.open = newData()
			b.store = b.handle(ctx)
		})
		describeVersions(b)
		describeFencing(b)
		describeHands(b)
		describeMany(b)
		describeRefusals(b)
		describeRows(b)
	})
}

type bench struct {
	open  Open
	store state.Store
}

func (b *bench) handle(ctx context.Context) state.Store {
	ginkgo.GinkgoHelper()
	store, err := b.open(ctx)
	Expect(err).NotTo(HaveOccurred())
	ginkgo.DeferCleanup(store.Close)
	return store
}

var (
	strong = schema.AutoscalingState // one key
	sorted = schema.CleanupValidation
	use1   = state.Key{Partition: "use1"}
)

// put writes fields of use1, and gives the item afterwards.
func (b *bench) put(ctx context.Context, w state.Write) (state.Item, error) {
	ginkgo.GinkgoHelper()
	w.Key = use1
	version, err := b.store.Write(ctx, strong, w)
	if err != nil {
		return state.Item{}, err
	}
	item, err := b.handle(ctx).Get(ctx, strong, use1)
	Expect(err).NotTo(HaveOccurred())
	Expect(item.Version).To(Equal(version))
	return item, nil
}

func describeVersions(b *bench) {
	ginkgo.It("has nothing at first, and says so", func(ctx ginkgo.SpecContext) {
		_, err := b.store.Get(ctx, strong, use1)
		Expect(err).To(MatchError(state.ErrNotFound))
		Expect(err).To(MatchError(And(ContainSubstring("autoscaling_state"), ContainSubstring("use1"))))
	})

	ginkgo.It("counts the writes, and lets each replace the version that it names", func(ctx ginkgo.SpecContext) {
		item, err := b.put(ctx, state.Write{Fields: object(`{"a":1}`)})
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Version).To(Equal(int64(1)))
		item, err = b.put(ctx, state.Write{Fields: object(`{"a":2}`), Version: 1})
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Version).To(Equal(int64(2)))
		Expect(item.Key).To(Equal(use1))
		Expect(item.Fields).To(MatchJSON(`{"a":2}`))
		item, err = b.put(ctx, state.Write{Fields: object(`{"a":3}`), Version: state.AnyVersion})
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Version).To(Equal(int64(3)))
	})

	ginkgo.DescribeTable("refuses a write on another version:", func(ctx ginkgo.SpecContext, version int64) {
		_, err := b.put(ctx, state.Write{Fields: object(`{"a":1}`)})
		Expect(err).NotTo(HaveOccurred())
		_, err = b.put(ctx, state.Write{Fields: object(`{"a":2}`), Version: 1})
		Expect(err).NotTo(HaveOccurred())
		_, err = b.put(ctx, state.Write{Fields: object(`{"a":9}`), Version: version})
		Expect(err).To(MatchError(state.ErrConflict))
		item, err := b.store.Get(ctx, strong, use1)
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Fields).To(MatchJSON(`{"a":2}`))
	},
		ginkgo.Entry("an old one", int64(1)),
		ginkgo.Entry("none", int64(0)),
		ginkgo.Entry("one that is still to come", int64(3)),
	)

	ginkgo.It("refuses to replace what is not there", func(ctx ginkgo.SpecContext) {
		_, err := b.put(ctx, state.Write{Fields: object(`{}`), Version: 1})
		Expect(err).To(MatchError(state.ErrConflict))
	})

	ginkgo.It("keeps fields that a write does not name", func(ctx ginkgo.SpecContext) {
		_, err := b.put(ctx, state.Write{Fields: object(`{"a":1,"of_the_future":{"b":[true,null]}}`)})
		Expect(err).NotTo(HaveOccurred())
		item, err := b.put(ctx, state.Write{Fields: object(`{"a":2}`), Version: 1})
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Fields).To(MatchJSON(`{"a":2,"of_the_future":{"b":[true,null]}}`))
	})

	ginkgo.It("loses no update of writers that come together", func(ctx ginkgo.SpecContext) {
		const writers, times = 4, 8
		var running sync.WaitGroup
		for range writers {
			store := b.handle(ctx)
			running.Go(func() {
				defer ginkgo.GinkgoRecover()
				for range times {
					addOne(ctx, store)
				}
			})
		}
		running.Wait()
		item, err := b.store.Get(ctx, strong, use1)
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Fields).To(MatchJSON(fmt.Sprintf(`{"n":%d}`, writers*times)))
		Expect(item.Version).To(Equal(int64(writers * times)))
	}, ginkgo.SpecTimeout(time.Minute))

	ginkgo.It("keeps every JSON value as it is", func(ctx ginkgo.SpecContext) {
		rapid.Check(ginkgo.GinkgoT(), func(t *rapid.T) {
			fields, err := json.Marshal(map[string]any{"v": value(3).Draw(t, "value")})
			Expect(err).NotTo(HaveOccurred())
			item, err := b.put(ctx, state.Write{Fields: fields, Version: state.AnyVersion})
			Expect(err).NotTo(HaveOccurred())
			Expect(item.Fields).To(MatchJSON(fields))
		})
	}, ginkgo.SpecTimeout(2*time.Minute))
}

// addOne adds 1 to a number, however often it must try.
func addOne(ctx context.Context, store state.Store) {
	for {
		item, err := store.Get(ctx, strong, use1)
		if !errors.Is(err, state.ErrNotFound) {
			Expect(err).NotTo(HaveOccurred())
		}
		var now struct{ N int }
		if item.Version > 0 {
			Expect(json.Unmarshal(item.Fields, &now)).To(Succeed())
		}
		_, err = store.Write(ctx, strong, state.Write{
			Key: use1, Version: item.Version, Fields: object(fmt.Sprintf(`{"n":%d}`, now.N+1)),
		})
		if err == nil {
			return
		}
		Expect(err).To(MatchError(state.ErrConflict))
	}
}

func value(depth int) *rapid.Generator[any] {
	kinds := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.String().AsAny(), rapid.Int64().AsAny(),
		rapid.Map(rapid.Int32(), func(n int32) any { return float64(n) / 1024 }), // DynamoDB knows no 1e-300
	}
	if depth > 0 {
		kinds = append(kinds, rapid.SliceOfN(value(depth-1), 0, 3).AsAny(),
			rapid.MapOfN(rapid.StringMatching(`[a-zA-Z0-9 _."]{1,8}`), value(depth-1), 0, 3).AsAny())
	}
	return rapid.OneOf(kinds...)
}

func describeFencing(b *bench) {
	ginkgo.It("refuses a fencing token lower than one that it has seen, whatever version it has read", func(ctx ginkgo.SpecContext) {
		_, err := b.put(ctx, state.Write{Fields: object(`{"by":5}`), Fence: 5})
		Expect(err).NotTo(HaveOccurred())
		for _, version := range []int64{1, state.AnyVersion, 0} {
			_, err = b.put(ctx, state.Write{Fields: object(`{"by":4}`), Fence: 4, Version: version})
			Expect(err).To(MatchError(state.ErrFenced), "version %d", version)
		}
		item, err := b.put(ctx, state.Write{Fields: object(`{"by":5}`), Fence: 5, Version: 1})
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Fence).To(Equal(int64(5)))
		item, err = b.put(ctx, state.Write{Fields: object(`{"by":7}`), Fence: 7, Version: 2})
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Fence).To(Equal(int64(7)))
		_, err = b.put(ctx, state.Write{Fields: object(`{"by":5}`), Fence: 5, Version: 3})
		Expect(err).To(MatchError(state.ErrFenced))
	})

	ginkgo.It("keeps the token when somebody without one writes", func(ctx ginkgo.SpecContext) {
		_, err := b.put(ctx, state.Write{Fields: object(`{}`), Fence: 5})
		Expect(err).NotTo(HaveOccurred())
		item, err := b.put(ctx, state.Write{Fields: object(`{"hold":"me"}`), Version: 1})
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Fence).To(Equal(int64(5)))
	})

	ginkgo.It("takes a token for what has none yet", func(ctx ginkgo.SpecContext) {
		_, err := b.put(ctx, state.Write{Fields: object(`{}`)})
		Expect(err).NotTo(HaveOccurred())
		item, err := b.put(ctx, state.Write{Fields: object(`{}`), Version: 1, Fence: 1})
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Fence).To(Equal(int64(1)))
	})
}

func describeHands(b *bench) {
	ginkgo.DescribeTable("makes a write only if a field still is as it was:",
		func(ctx ginkgo.SpecContext, there, unchanged string, made bool) {
			_, err := b.put(ctx, state.Write{Fields: object(there)})
			Expect(err).NotTo(HaveOccurred())
			var fields map[string]json.RawMessage
			Expect(json.Unmarshal([]byte(unchanged), &fields)).To(Succeed())
			_, err = b.put(ctx, state.Write{Fields: object(`{"b":1}`), Version: 1, Unchanged: fields})
			if made {
				Expect(err).NotTo(HaveOccurred())
			} else {
				Expect(err).To(MatchError(state.ErrConflict))
			}
		},
		ginkgo.Entry("the same number", `{"desired_capacity":4}`, `{"desired_capacity":4}`, true),
		ginkgo.Entry("the same number, written in another way", `{"desired_capacity":40}`, `{"desired_capacity":4e1}`, true),
		ginkgo.Entry("another number", `{"desired_capacity":4}`, `{"desired_capacity":5}`, false),
		ginkgo.Entry("a number and text", `{"desired_capacity":4}`, `{"desired_capacity":"4"}`, false),
		ginkgo.Entry("one of two", `{"min":1,"max":4}`, `{"min":1,"max":5}`, false),
		ginkgo.Entry("lists and objects", `{"a":[1,{"b":true}]}`, `{"a":[1,{"b":true}]}`, true),
		ginkgo.Entry("nothing there, as expected", `{}`, `{"hold":null}`, true),
		ginkgo.Entry("null there, as expected", `{"hold":null}`, `{"hold":null}`, true),
		ginkgo.Entry("something there that was not", `{"hold":"me"}`, `{"hold":null}`, false),
		ginkgo.Entry("nothing there that was", `{}`, `{"hold":"me"}`, false),
	)
}

func wash(i int) state.Key {
	return state.Key{Partition: "use1-0", Sort: fmt.Sprintf("2096-01-01T00:00:00.%06dZ", i)}
}

func describeMany(b *bench) {
	keysOf := func(items []state.Item) (keys []state.Key) {
		for _, item := range items {
			keys = append(keys, item.Key)
		}
		return keys
	}
	fill := func(ctx context.Context, count int) (keys []state.Key) {
		ginkgo.GinkgoHelper()
		var writes []state.Write
		for i := range count {
			writes = append(writes, state.Write{Key: wash(i), Fields: object(fmt.Sprintf(`{"i":%d,"region":"use%d"}`, i, i%2+1))})
			keys = append(keys, wash(i))
		}
		Expect(b.store.Replace(ctx, sorted, writes)).To(Succeed())
		return keys
	}

	ginkgo.It("stores and reads more than fits one call", func(ctx ginkgo.SpecContext) {
		keys := fill(ctx, 130)
		items, err := b.handle(ctx).GetMany(ctx, sorted, append(keys, wash(999), state.Key{Partition: "x", Sort: "y"}))
		Expect(err).NotTo(HaveOccurred())
		Expect(keysOf(items)).To(ConsistOf(keys))
		Expect(b.store.GetMany(ctx, sorted, nil)).To(BeEmpty())
		Expect(b.store.Replace(ctx, sorted, nil)).To(Succeed())
	}, ginkgo.SpecTimeout(time.Minute))

	ginkgo.It("replaces all of an item", func(ctx ginkgo.SpecContext) {
		fill(ctx, 1)
		Expect(b.store.Replace(ctx, sorted, []state.Write{{Key: wash(0), Fields: object(`{"b":2}`)}})).To(Succeed())
		item, err := b.store.Get(ctx, sorted, wash(0))
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Fields).To(MatchJSON(`{"b":2}`))
	})

	ginkgo.It("lists a partition in order, from a key on, from either end, and so many", func(ctx ginkgo.SpecContext) {
		keys := fill(ctx, 10)
		Expect(b.store.Replace(ctx, sorted, []state.Write{{Key: state.Key{Partition: "use2-0", Sort: "x"}, Fields: object(`{}`)}})).To(Succeed())
		list := func(q state.Query) []state.Key {
			ginkgo.GinkgoHelper()
			items, err := b.store.List(ctx, sorted, q)
			Expect(err).NotTo(HaveOccurred())
			return keysOf(items)
		}
		Expect(list(state.Query{Partition: "use1-0"})).To(Equal(keys))
		Expect(list(state.Query{Partition: "use1-0", From: keys[7].Sort})).To(Equal(keys[7:]))
		Expect(list(state.Query{Partition: "use1-0", Limit: 3})).To(Equal(keys[:3]))
		Expect(list(state.Query{Partition: "use1-0", Newest: true, Limit: 2})).To(Equal([]state.Key{keys[9], keys[8]}))
		Expect(list(state.Query{Partition: "nobody"})).To(BeEmpty())
		Expect(list(state.Query{})).To(HaveLen(11))
		Expect(list(state.Query{Index: "by_region", Partition: "use2", Newest: true, Limit: 2})).To(Equal([]state.Key{keys[9], keys[7]}))
		_, err := b.store.List(ctx, sorted, state.Query{Index: "by_moon", Partition: "use1"})
		Expect(err).To(MatchError(ContainSubstring(`no index "by_moon"`)))
	})

	ginkgo.It("does not show what has expired", func(ctx ginkgo.SpecContext) {
		past, future := time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
		Expect(b.store.Replace(ctx, sorted, []state.Write{
			{Key: wash(0), Fields: object(`{"region":"use1"}`), Expires: past},
			{Key: wash(1), Fields: object(`{"region":"use1"}`), Expires: future},
		})).To(Succeed())
		_, err := b.store.Get(ctx, sorted, wash(0))
		Expect(err).To(MatchError(state.ErrNotFound))
		Expect(b.store.GetMany(ctx, sorted, []state.Key{wash(0), wash(1)})).To(HaveExactElements(HaveField("Key", wash(1))))
		Expect(b.store.List(ctx, sorted, state.Query{Partition: "use1-0"})).To(HaveExactElements(HaveField("Key", wash(1))))
		_, err = b.store.Write(ctx, sorted, state.Write{Key: wash(1), Fields: object(`{}`), Version: state.AnyVersion, Expires: past})
		Expect(err).NotTo(HaveOccurred())
		Expect(b.store.List(ctx, sorted, state.Query{Partition: "use1-0"})).To(BeEmpty())
	})
}

func describeRefusals(b *bench) {
	ginkgo.DescribeTable("refuses, and stores nothing:", func(ctx ginkgo.SpecContext, table schema.Table, w state.Write, why string) {
		if w.Fields == nil {
			w.Fields = object(`{}`)
		}
		_, err := b.store.Write(ctx, table, w)
		Expect(err).To(MatchError(ContainSubstring(why)))
		Expect(b.store.Replace(ctx, table, []state.Write{w})).To(MatchError(ContainSubstring(why)))
		Expect(b.store.List(ctx, table, state.Query{})).To(BeEmpty())
	},
		ginkgo.Entry("no key", strong, state.Write{}, "want 1 to 512 bytes of region"),
		ginkgo.Entry("a long key", strong, state.Write{Key: state.Key{Partition: strings.Repeat("x", 513)}}, "want 1 to 512 bytes"),
		ginkgo.Entry("a sort key too many", strong, state.Write{Key: state.Key{Partition: "a", Sort: "b"}}, "sort key"),
		ginkgo.Entry("a sort key too few", sorted, state.Write{Key: state.Key{Partition: "a"}}, "sort key"),
		ginkgo.Entry("a long sort key", sorted, state.Write{Key: state.Key{Partition: "a", Sort: strings.Repeat("x", 513)}}, "sort key longer"),
		ginkgo.Entry("fields that are no object", strong, state.Write{Key: use1, Fields: object(`[]`)}, "want a JSON object"),
		ginkgo.Entry("null for fields", strong, state.Write{Key: use1, Fields: object(`null`)}, "want a JSON object"),
		ginkgo.Entry("half of the fields", strong, state.Write{Key: use1, Fields: object(`{"a":`)}, "want a JSON object"),
		ginkgo.Entry("a field of the store's", strong, state.Write{Key: use1, Fields: object(`{"version":1}`)}, `"version"`),
		ginkgo.Entry("the key as a field", strong, state.Write{Key: use1, Fields: object(`{"region":"use2"}`)}, `"region"`),
		ginkgo.Entry("a field that is no name", strong, state.Write{Key: use1, Fields: object(`{"a b":1}`)}, `"a b"`),
		ginkgo.Entry("a negative version", strong, state.Write{Key: use1, Version: -2}, "version -2"),
		ginkgo.Entry("a negative token", strong, state.Write{Key: use1, Fence: -1}, "token -1"),
		ginkgo.Entry("an end where nothing ends", strong, state.Write{Key: use1, Expires: time.Now()}, "nothing expires"),
	)

	ginkgo.It("does nothing after it is closed", func(ctx ginkgo.SpecContext) {
		Expect(b.store.Close()).To(Succeed())
		Expect(b.store.Close()).To(Succeed())
		_, err := b.store.Get(ctx, strong, use1)
		Expect(err).To(MatchError(ContainSubstring("closed")))
		_, err = b.store.Write(ctx, strong, state.Write{Key: use1, Fields: object(`{}`)})
		Expect(err).To(MatchError(ContainSubstring("closed")))
	})
}

func describeRows(b *bench) {
	ginkgo.It("gives rows back as they were", func(ctx ginkgo.SpecContext) {
		now := time.Now().UTC().Round(0)
		row := state.Autoscaling{
			DesiredCapacity: 4, Min: 2, Max: 20, CooldownUntil: now, LastAction: "launch 2", LastReason: "above target",
			LastActionAt: now, Memory: object(`{"above_since":null}`),
		}
		table := state.AutoscalingTable(b.store)
		put, err := table.Put(ctx, state.Record[state.Autoscaling]{Key: use1, Value: row}, state.Fenced(3))
		Expect(err).NotTo(HaveOccurred())
		got, err := state.AutoscalingTable(b.handle(ctx)).Get(ctx, use1)
		Expect(err).NotTo(HaveOccurred())
		Expect(got).To(Equal(put))
		Expect(got.Value).To(Equal(row))
		Expect(got.Fence).To(Equal(int64(3)))
		_, err = table.Put(ctx, got, state.Fenced(2))
		Expect(err).To(MatchError(state.ErrFenced))
	})

	ginkgo.It("keeps leases and failover states apart, in one table", func(ctx ginkgo.SpecContext) {
		_, err := state.LeaseTable(b.store).Put(ctx, state.Record[lease.Record]{
			Key: state.LeaseKey("use1"), Value: lease.Record{Holder: "a", Token: 1, Length: time.Second},
		})
		Expect(err).NotTo(HaveOccurred())
		_, err = state.RoutingTable(b.store).Get(ctx, state.RoutingKey)
		Expect(err).To(MatchError(state.ErrNotFound))
		got, err := state.LeaseTable(b.store).GetMany(ctx, []state.Key{state.LeaseKey("use1"), state.LeaseKey("use2")})
		Expect(err).NotTo(HaveOccurred())
		Expect(got).To(HaveExactElements(HaveField("Value.Holder", "a")))
	})

	ginkgo.It("names the field of a row that does not fit, and gives those that do", func(ctx ginkgo.SpecContext) {
		for region, fields := range map[string]string{
			"use1": `{"desired_capacity":"four","min_capacity":2,"max_capacity":20}`,
			"use2": `{"desired_capacity":4,"min_capacity":2,"max_capacity":1}`,
			"usw2": `{"desired_capacity":4,"min_capacity":2,"max_capacity":20}`,
		} {
			_, err := b.store.Write(ctx, strong, state.Write{Key: state.Key{Partition: region}, Fields: object(fields)})
			Expect(err).NotTo(HaveOccurred())
		}
		rows, err := state.AutoscalingTable(b.store).List(ctx, state.Query{})
		Expect(rows).To(HaveExactElements(HaveField("Key.Partition", "usw2")))
		Expect(err).To(MatchError(And(ContainSubstring("use1"), ContainSubstring("desired_capacity"),
			ContainSubstring("use2"), ContainSubstring("want 0 <= min <= max"))))
	})

	ginkgo.It("finds the washes of a region, the newest first", func(ctx ginkgo.SpecContext) {
		table := state.WashTable(b.store)
		start := time.Now()
		for i, instance := range []string{"use1-0", "use1-1", "use1-0"} {
			_, err := table.Put(ctx, state.Record[state.Wash]{
				Key: state.WashKey(instance, start.Add(time.Duration(i)*time.Second)),
				Value: state.Wash{
					Region: "use1", Trigger: "requests", StartedAt: start, Reason: "clear_gpu: a byte",
					Steps: []state.WashStep{{Name: "clear_gpu", Duration: time.Second}},
				},
			})
			Expect(err).NotTo(HaveOccurred())
		}
		washes, err := table.List(ctx, state.WashesOf("use1", 2))
		Expect(err).NotTo(HaveOccurred())
		Expect(washes).To(HaveExactElements(HaveField("Key.Partition", "use1-0"), HaveField("Key.Partition", "use1-1")))
		Expect(washes[0].Value.Steps).To(HaveExactElements(HaveField("Duration", time.Second)))
	})
}

func object(text string) json.RawMessage { return json.RawMessage(text) }
