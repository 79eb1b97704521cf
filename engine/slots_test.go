package engine_test

import (
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/engine"
)

// given is a request that has a grant.
type given struct {
	engine.Grant
	salt string
}

// late is a request that was given up, and that the engine may get to yet.
type late struct {
	given
	until time.Time
}

// slottedEngine is what an engine's slots hold: the salts whose prompts' tokens
// are there.
type slottedEngine [][]string

// run has a request leave its tokens behind in a slot.
func (e slottedEngine) run(g given, slot int) {
	if g.Reuse && slot == g.Slot {
		e[slot] = append(e[slot], g.salt)
	} else {
		e[slot] = []string{g.salt}
	}
}

var _ = Describe("The slots of an engine without salts", func() {
	It("are never reused for a prompt of another salt, whatever ends how and when", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			n := rapid.IntRange(1, 4).Draw(t, "slots")
			table, held := engine.NewSlotTable(n), make(slottedEngine, n)
			now := time.Unix(0, 0)
			var running []given
			var delayed []late
			kept, keptAt := "", -1
			check := func() {
				for _, g := range running {
					for _, salt := range held[g.Slot] {
						if g.Reuse && salt != g.salt {
							t.Fatalf("a request under %s reuses slot %d, which holds %q", g.salt, g.Slot, held[g.Slot])
						}
					}
				}
			}
			t.Repeat(map[string]func(*rapid.T){
				"": func(*rapid.T) { check() },
				"take": func(t *rapid.T) {
					salt := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "salt")
					all := rapid.IntRange(0, 9).Draw(t, "choices") == 0
					g, ok := table.Take(salt, all, now)
					alone := slices.ContainsFunc(running, func(g given) bool { return g.All })
					want := all && len(running) == 0 && kept == ""
					for slot := range n {
						busy := alone || slices.ContainsFunc(running, func(g given) bool { return g.Slot == slot })
						own := kept == "" || keptAt < 0 || (salt == kept) == (slot == keptAt)
						want = want || !all && !busy && own
					}
					if ok != want {
						t.Fatalf("with %+v running and slot %d kept for %q one under %q gets one: %v", running, keptAt, kept, salt, ok)
					}
					if !ok {
						return
					}
					if kept != "" && keptAt >= 0 && (salt == kept) != (g.Slot == keptAt) {
						t.Fatalf("one under %s gets slot %d, and %d is kept for %s", salt, g.Slot, keptAt, kept)
					}
					if kept != "" && salt == kept {
						keptAt = g.Slot
					}
					for _, other := range running {
						if g.All || other.All || other.Slot == g.Slot {
							t.Fatalf("%+v is given beside %+v", g, other)
						}
					}
					running = append(running, given{g, salt})
				},
				"end": func(t *rapid.T) {
					if len(running) == 0 {
						t.Skip()
					}
					i := rapid.IntRange(0, len(running)-1).Draw(t, "which")
					g := running[i]
					end := rapid.SampledFrom([]engine.Ending{engine.EndAnswered, engine.EndAnswered, engine.EndRefused, engine.EndVanished}).Draw(t, "end")
					switch end {
					case engine.EndAnswered:
						held.run(g, g.Slot)
						for slot := range n {
							if g.All && rapid.Bool().Draw(t, "child") {
								held.run(g, slot)
							}
						}
					case engine.EndVanished:
						delayed = append(delayed, late{g, now.Add(engine.Doubt)})
					case engine.EndRefused:
					}
					table.Release(g.Grant, g.salt, end, now)
					running = slices.Delete(running, i, i+1)
				},
				"late": func(t *rapid.T) {
					if len(delayed) == 0 {
						t.Skip()
					}
					i := rapid.IntRange(0, len(delayed)-1).Draw(t, "which")
					d := delayed[i]
					delayed = slices.Delete(delayed, i, i+1)
					if now.Before(d.until) {
						slot := d.Slot
						if d.All {
							slot = rapid.IntRange(0, n-1).Draw(t, "slot")
						}
						held.run(d.given, slot)
					}
				},
				"keep": func(t *rapid.T) {
					if n == 1 {
						t.Skip()
					}
					kept, keptAt = rapid.SampledFrom([]string{"", "a"}).Draw(t, "kept"), -1
					table.Keep(kept)
				},
				"wait": func(t *rapid.T) {
					now = now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
				},
			})
		})
	})

	It("are reused under their own salt, the last used first, and else the least missed", func() {
		now := time.Unix(0, 0)
		table := engine.NewSlotTable(3)
		ask := func(salt string) engine.Grant {
			GinkgoHelper()
			g, ok := table.Take(salt, false, now)
			Expect(ok).To(BeTrue())
			table.Release(g, salt, engine.EndAnswered, now)
			return g
		}
		Expect(ask("a")).To(Equal(engine.Grant{Slot: 0}))
		Expect(ask("a")).To(Equal(engine.Grant{Slot: 0, Reuse: true}))
		Expect(ask("b")).To(Equal(engine.Grant{Slot: 1}), "an empty one")
		Expect(ask("c")).To(Equal(engine.Grant{Slot: 2}))
		Expect(ask("a")).To(Equal(engine.Grant{Slot: 0, Reuse: true}))
		Expect(ask("d")).To(Equal(engine.Grant{Slot: 1}), "the one that was used first")
		Expect(ask("b")).To(Equal(engine.Grant{Slot: 2}))
	})

	It("hold nothing that may be reused after a request that failed, or had several choices", func() {
		now := time.Unix(0, 0)
		for _, end := range []engine.Ending{engine.EndRefused, engine.EndVanished, engine.EndAnswered} {
			all := end == engine.EndAnswered
			table := engine.NewSlotTable(1)
			for range 2 {
				g, _ := table.Take("a", false, now)
				table.Release(g, "a", engine.EndAnswered, now)
			}
			g, ok := table.Take("a", all, now)
			Expect(ok).To(BeTrue())
			Expect(g.Reuse).To(Equal(!all))
			table.Release(g, "a", end, now)
			g, _ = table.Take("a", false, now)
			Expect(g.Reuse).To(BeFalse())
		}
	})

	It("that a vanished request may get to yet are reused again when it no longer can", func() {
		now := time.Unix(0, 0)
		table := engine.NewSlotTable(1)
		ask := func(end engine.Ending) bool {
			g, _ := table.Take("a", false, now)
			table.Release(g, "a", end, now)
			return g.Reuse
		}
		ask(engine.EndVanished)
		now = now.Add(engine.Doubt - 1)
		ask(engine.EndAnswered)
		Expect(ask(engine.EndAnswered)).To(BeFalse())
		now = now.Add(1)
		ask(engine.EndAnswered)
		Expect(ask(engine.EndAnswered)).To(BeTrue())
	})

	It("that a vanished request may get to yet are the last to be taken: what is asked there is not found again", func() {
		now := time.Unix(0, 0)
		table := engine.NewSlotTable(2)
		ask := func(salt string, end engine.Ending) engine.Grant {
			g, _ := table.Take(salt, false, now)
			table.Release(g, salt, end, now)
			return g
		}
		Expect(ask("a", engine.EndVanished).Slot).To(Equal(0))
		Expect(ask("b", engine.EndAnswered).Slot).To(Equal(1))
		Expect(ask("c", engine.EndAnswered)).To(Equal(engine.Grant{Slot: 1}), "not the empty one")
		Expect(ask("c", engine.EndAnswered)).To(Equal(engine.Grant{Slot: 1, Reuse: true}))
		now = now.Add(engine.Doubt)
		Expect(ask("d", engine.EndAnswered).Slot).To(Equal(0))
	})

	It("are kept from who vanishes again and again, for one salt, until it finds what it has asked", func() {
		tries := func(keepAfter int) (reused bool) {
			now := time.Unix(0, 0)
			table := engine.NewSlotTable(2)
			for try := range 180 {
				if try == keepAfter {
					table.Keep("canary")
				}
				for range 2 {
					for range 2 { // whoever vanishes takes whatever there is
						if g, ok := table.Take("a", false, now); ok {
							table.Release(g, "a", engine.EndVanished, now)
						}
					}
					g, ok := table.Take("canary", false, now)
					Expect(ok).To(BeTrue())
					table.Release(g, "canary", engine.EndAnswered, now)
					reused = g.Reuse
				}
				if reused {
					return true
				}
				now = now.Add(500 * time.Millisecond)
			}
			return false
		}
		Expect(tries(-1)).To(BeFalse())
		Expect(tries(20)).To(BeTrue())
	})
})
