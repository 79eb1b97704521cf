package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// wholeSteps are those of a wash that passed, whose first and last were these.
func wholeSteps(first, last state.WashStep) (steps []state.WashStep) {
	for _, name := range state.WashSteps() {
		steps = append(steps, state.WashStep{Name: name, Passed: true, Detail: "seen"})
	}
	first.Name, last.Name = steps[0].Name, steps[len(steps)-1].Name
	steps[0], steps[len(steps)-1] = first, last
	return steps
}

// looked is a store of which something is done before each look at a row, by its number.
type looked struct {
	state.Store
	before func(look int) error
	looks  int
}

func (s *looked) Get(ctx context.Context, table schema.Table, key state.Key) (state.Item, error) {
	s.looks++
	if err := s.before(s.looks); err != nil {
		return state.Item{}, err
	}
	return s.Store.Get(ctx, table, key)
}

var _ = Describe("mrgc wash show", func() {
	var address string
	at := time.Date(2026, time.March, 14, 9, 26, 53, 589000000, time.UTC)
	BeforeEach(func(ctx SpecContext) {
		address = "sqlite:" + filepath.Join(GinkgoT().TempDir(), "state.db")
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		defer store.Close()
		for i, w := range []state.Wash{
			{Passed: true, Steps: wholeSteps(state.WashStep{Duration: time.Second, Passed: true, Detail: "planted"}, state.WashStep{Duration: 500 * time.Millisecond, Passed: true, Detail: "gone"})},
			{Reason: "check_model: another file", Steps: []state.WashStep{{Name: "check_model", Detail: "another file"}}},
		} {
			w.Region, w.Trigger, w.StartedAt = "use1", "operator", at.Add(time.Duration(i)*time.Hour)
			_, err := state.WashTable(store).Put(ctx, state.Record[state.Wash]{Key: state.WashKey("use1-0", w.StartedAt), Value: w})
			Expect(err).NotTo(HaveOccurred())
		}
	})

	It("shows an instance's washes, the newest first", func() {
		got := mrgc("wash", "show", "use1-0", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`(?s)T10:26:53.* operator +0s +FAILED: check_model: another file\n.*T09:26:53.* operator +1.5s +passed`))
		got = mrgc("wash", "show", "use1-0", "--state", address, "--last", "1", "-o", "json")
		var washes []recordedWash
		Expect(json.Unmarshal([]byte(got.stdout), &washes)).To(Succeed())
		Expect(washes).To(HaveExactElements(HaveField("ID", "use1-0/2026-03-14T10:26:53.589000Z")))
	})

	DescribeTable("shows one that has not ended", func(ctx SpecContext, w state.Wash, shown string) {
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		defer store.Close()
		w.Region, w.Trigger, w.StartedAt = "use1", "interval", at
		_, err = state.WashTable(store).Put(ctx, state.Record[state.Wash]{Key: state.WashKey("use1-1", at), Value: w})
		Expect(err).NotTo(HaveOccurred())
		got := mrgc("wash", "show", "use1-1", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`T09:26:53.* interval +- +` + shown + `\n`))
	},
		Entry("because it waits", state.Wash{Open: state.WashWaiting, Reason: "no other instance is ready"}, "waits: no other instance is ready"),
		Entry("because it is under way", state.Wash{Open: state.WashUnderWay}, "under way"),
	)

	It("shows one by its id, step by step", func() {
		got := mrgc("wash", "show", "use1-0/2026-03-14T09:26:53.589000Z", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`(?s)plant_canary +1s +true +planted\n.*\ncheck_canary +500ms +true +gone`))
	})

	It("does not show a row as passed that is not whole, and shows the others", func(ctx SpecContext) {
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		defer store.Close()
		key := state.WashKey("use1-0", at.Add(2*time.Hour))
		_, err = store.Write(ctx, schema.CleanupValidation, state.Write{Key: key, Fields: []byte(`{"region":"use1","trigger":"operator","started_at":"2026-03-14T11:26:53.589Z","passed":true,` +
			`"steps":[{"name":"plant_canary","duration_ns":1,"passed":true,"detail":"planted"}]}`)})
		Expect(err).NotTo(HaveOccurred())
		got := mrgc("wash", "show", "use1-0", "--state", address)
		Expect(got.err).To(MatchError(And(ContainSubstring("use1-0/2026-03-14T11:26:53.589000Z"), ContainSubstring("not whole"))))
		Expect(got.stdout).To(And(ContainSubstring("T09:26:53"), ContainSubstring("T10:26:53"), Not(ContainSubstring("T11:26:53"))))
		got = mrgc("wash", "show", key.Partition+"/"+key.Sort, "--state", address)
		Expect(got.err).To(MatchError(ContainSubstring("not whole")))
		Expect(got.stdout).To(MatchRegexp(`(?s)FAILED: .*not whole.*plant_canary +0s +true +planted`))
	})

	It("says what it does not find, or cannot do", func() {
		Expect(mrgc("wash", "show", "use1-0/never", "--state", address).err).To(MatchError("no wash use1-0/never is recorded (mrgc wash show use1-0 lists the instance's)"))
		Expect(mrgc("wash", "show", "use1-7", "--state", address).stdout).To(Equal("no wash of use1-7 is recorded (mrgc status lists the instances)\n"))
		Expect(mrgc("wash", "show", "use1-7", "--state", address, "-o", "json").stdout).To(Equal("[]\n"))
		Expect(mrgc("wash", "show", "use1-0", "--state", address, "--last", "0").err).To(MatchError(ContainSubstring("--last 0")))
		Expect(mrgc("wash", "show", "use1-0", "--state", address, "-o", "xml").err).To(MatchError(ContainSubstring("want table or json")))
	})
})

var _ = Describe("mrgc wash now", func() {
	It("asks a router, and the next one when the first does not know", func() {
		var asked []string
		router := func(status int) string {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("Content-Type"))
				if status != http.StatusAccepted {
					api.Errorf(status, "not_found", "no such instance").Write(w)
					return
				}
				w.WriteHeader(status)
				_, _ = io.WriteString(w, `{"instance":"use1-0","wash":"use1-0/2026-03-14T09:26:53.589000Z"}`)
			}))
			DeferCleanup(server.Close)
			return server.URL
		}
		lost := router(http.StatusNotFound)
		got := mrgc("wash", "now", "use1-0", "--admin", lost, "--admin", router(http.StatusAccepted))
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(Equal("a wash of use1-0 is ordered; mrgc wash show use1-0/2026-03-14T09:26:53.589000Z says how it went, when it has ended\n"))
		Expect(asked).To(HaveLen(2))
		Expect(asked).To(HaveEach("POST /instances/use1-0/wash application/json"))
		Expect(mrgc("wash", "now", "use1-0", "--admin", lost).err).To(MatchError(ContainSubstring("no such instance")))
	})

	Describe("--wait", func() {
		var address, admin string
		var ordered func() (started time.Time) // what an order leads to: a wash
		at := time.Date(2026, time.March, 14, 9, 26, 53, 589000000, time.UTC)
		record := func(started time.Time, w state.Wash) {
			GinkgoHelper()
			store, err := open.Store(context.Background(), address, nil)
			Expect(err).NotTo(HaveOccurred())
			defer store.Close()
			w.Region, w.Trigger, w.StartedAt = "use1", "operator", started
			key := state.WashKey("use1-0", started)
			old, err := state.WashTable(store).Get(context.Background(), key)
			if !errors.Is(err, state.ErrNotFound) {
				Expect(err).NotTo(HaveOccurred())
			}
			_, err = state.WashTable(store).Put(context.Background(), state.Record[state.Wash]{Key: key, Version: old.Version, Value: w})
			Expect(err).NotTo(HaveOccurred())
		}
		passed := state.Wash{Passed: true, Steps: wholeSteps(state.WashStep{Passed: true, Detail: "planted"}, state.WashStep{Duration: time.Second, Passed: true, Detail: "gone"})}
		failed := state.Wash{Reason: "check_model: another file", Steps: []state.WashStep{{Name: "check_model", Detail: "another file"}}}
		BeforeEach(func() {
			address = "sqlite:" + filepath.Join(GinkgoT().TempDir(), "state.db")
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				key := state.WashKey("use1-0", ordered())
				w.WriteHeader(http.StatusAccepted)
				_ = json.NewEncoder(w).Encode(map[string]string{"wash": key.Partition + "/" + key.Sort})
			}))
			DeferCleanup(server.Close)
			admin = server.URL
		})
		wait := func(more ...string) result {
			return mrgc(append([]string{"wash", "now", "use1-0", "--admin", admin, "--state", address, "--wait", "--timeout", "10s"}, more...)...)
		}

		It("shows the wash that was ordered, and no other", func() {
			ordered = func() time.Time {
				record(at, failed) // one that was under way
				record(at.Add(time.Hour), passed)
				record(at.Add(2*time.Hour), failed)
				return at.Add(time.Hour)
			}
			got := wait()
			Expect(got.err).NotTo(HaveOccurred())
			Expect(got.stdout).To(And(MatchRegexp(`T10:26:53.* passed`), MatchRegexp(`check_canary +1s +true +gone`), Not(ContainSubstring("T09:26:53")), Not(ContainSubstring("T11:26:53"))))
		})

		It("fails when the wash does, and says what that means", func() {
			ordered = func() time.Time { record(at, failed); return at }
			got := wait("-o", "json")
			Expect(got.err).To(MatchError("the wash has failed, and use1-0 takes no requests until one passes: check_model: another file"))
			Expect(got.stdout).To(ContainSubstring(`"name": "check_model"`))
		})

		It("waits while it is not recorded, cannot begin yet, is under way, and while the store is away", func(ctx SpecContext) {
			store := &looked{Store: memory.New(nil).Open()}
			key := state.WashKey("use1-0", at)
			var version int64
			put := func(w state.Wash) {
				GinkgoHelper()
				w.Region, w.Trigger, w.StartedAt = "use1", "operator", at
				stored, err := state.WashTable(store.Store).Put(ctx, state.Record[state.Wash]{Key: key, Version: version, Value: w})
				Expect(err).NotTo(HaveOccurred())
				version = stored.Version
			}
			store.before = func(look int) error {
				switch look {
				case 2:
					put(state.Wash{Open: state.WashWaiting, Reason: "no turn"})
				case 3:
					return errors.New("the store is away")
				case 4:
					put(state.Wash{Open: state.WashUnderWay})
				case 5:
					put(passed)
				}
				return nil
			}
			wash, err := awaitWash(ctx, state.WashTable(store), key.Partition+"/"+key.Sort, &progressLine{})
			Expect(err).NotTo(HaveOccurred())
			Expect(wash.Passed).To(BeTrue())
			Expect(store.looks).To(Equal(5))
		}, NodeTimeout(20*time.Second))

		It("says that the store is away when it is until the end", func(ctx SpecContext) {
			store := &looked{Store: memory.New(nil).Open(), before: func(int) error { return errors.New("connection refused") }}
			short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			_, err := awaitWash(short, state.WashTable(store), "use1-0/2026-03-14T09:26:53.589000Z", &progressLine{})
			Expect(err).To(MatchError(And(ContainSubstring("deadline exceeded"), ContainSubstring("the state store does not answer"), ContainSubstring("connection refused"))))
		}, NodeTimeout(20*time.Second))

		It("waits no longer than it is told, and says that the wash goes on", func() {
			ordered = func() time.Time { return at }
			Expect(wait("--timeout", "300ms").err).To(MatchError(And(
				ContainSubstring("the wash goes on"), ContainSubstring("mrgc wash show use1-0/2026-03-14T09:26:53.589000Z"), ContainSubstring("deadline exceeded"))))
		})

		It("does not take a record for a wash's that is not whole", func(ctx SpecContext) {
			ordered = func() time.Time {
				store, err := open.Store(context.Background(), address, nil)
				Expect(err).NotTo(HaveOccurred())
				defer store.Close()
				_, err = store.Write(context.Background(), schema.CleanupValidation, state.Write{Key: state.WashKey("use1-0", at), Fields: []byte(`{"region":"use1","trigger":"operator","started_at":"2026-03-14T09:26:53.589Z","passed":true,"steps":[]}`)})
				Expect(err).NotTo(HaveOccurred())
				return at
			}
			Expect(wait().err).To(MatchError(And(ContainSubstring("use1-0/2026-03-14T09:26:53.589000Z"), ContainSubstring("not whole"))))
		})
	})
})
