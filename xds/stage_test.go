package xds

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// region is a stage with Envoys around it that do as a test has them do.
type stagedRegion struct {
	*stage
	now      time.Time
	bad      func(resourceKey) bool // what every Envoy rejects
	hangs    map[string]bool        // node → it does not answer
	accepted map[resourceKey]bool   // some Envoy has said so
	rejected map[resourceKey]string // → the node that rejected it, while that is to be remembered
}

const patience = 5 * time.Second

var stageNodes = []string{"a", "b", "c", "d"}

func newStagedRegion(bad func(resourceKey) bool) *stagedRegion {
	return &stagedRegion{
		stage: newStage(patience), now: at, bad: bad, hangs: map[string]bool{},
		accepted: map[resourceKey]bool{}, rejected: map[resourceKey]string{},
	}
}

// keys lists what is in a set.
func keys(set resourceSet) (out []resourceKey) {
	for _, typeURL := range staged {
		for name, r := range set[typeURL].byName {
			out = append(out, resourceKey{typeURL, version{name, r.version}})
		}
	}
	return out
}

// answer lets a connected Envoy look at what it should have and say what it
// thinks of it.
func (r *stagedRegion) answer(t *rapid.T, node string) {
	if r.position(node) < 0 || r.hangs[node] {
		return
	}
	out := report{rejected: map[resourceKey]rejection{}, complete: true, idle: true}
	for _, key := range keys(r.target(node)) {
		if before, is := r.rejected[key]; is && before != node {
			t.Fatalf("%v reached %s though %s had rejected it", key, node, before)
		}
		if r.bad(key) {
			out.rejected[key], out.complete, out.idle = rejection{message: "bad", at: r.now}, false, false
			r.rejected[key] = node
		} else {
			r.accepted[key] = true
		}
	}
	r.happens(func() { r.report(node, out, r.now) })
}

// happens forgives what may be tried again because of an event: other versions
// of what is now good otherwise, and what is published no more.
func (r *stagedRegion) happens(event func()) {
	before := r.good
	event()
	for key := range r.rejected {
		_, wanted := r.want[key.typeURL].byName[key.name]
		if !wanted || r.good[key.typeURL].byName[key.name].version != before[key.typeURL].byName[key.name].version {
			delete(r.rejected, key)
		}
	}
}

// check holds the stage to its promise.
func (r *stagedRegion) check(t *rapid.T) {
	var atRisk []string
	for _, node := range stageNodes {
		if slices.ContainsFunc(keys(r.target(node)), func(key resourceKey) bool { return !r.accepted[key] }) {
			atRisk = append(atRisk, node)
		}
	}
	if len(atRisk) > 1 {
		t.Fatalf("%v have what nobody has accepted", atRisk)
	}
}

func drawStaged(t *rapid.T) resourceSet {
	hash := rapid.SampledFrom([]string{"v1", "v2", "v3", "v4"})
	out := resourceSet{typeEndpoint: setOf(map[string]string{"x": "e"})}
	for _, typeURL := range staged {
		out[typeURL] = setOf(rapid.MapOfN(rapid.SampledFrom([]string{"x", "y"}), hash, 1, 2).Draw(t, shortType(typeURL)))
	}
	return out
}

// TestStage drives a region's Envoys through publications, rejections, hanging,
// coming and going, and holds what they are given to three promises: no two are
// at risk at once, no second one gets what one rejected, and it ends, in the
// time that those who hang may take.
func TestStage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		badHash := rapid.SampledFrom([]string{"", "v2", "v3"}).Draw(t, "version that is bad")
		badType := rapid.SampledFrom(staged).Draw(t, "type that is bad")
		r := newStagedRegion(func(key resourceKey) bool { return key.typeURL == badType && key.hash == badHash })
		node := rapid.SampledFrom(stageNodes)
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) { r.happens(func() { r.publish(drawStaged(t), r.now) }) },
			"join": func(t *rapid.T) {
				n, fresh := node.Draw(t, "node"), rapid.Bool().Draw(t, "fresh")
				for key, by := range r.rejected {
					if fresh && by == n {
						delete(r.rejected, key)
					}
				}
				r.join(n, fresh, r.now)
			},
			"leave":  func(t *rapid.T) { r.leave(node.Draw(t, "node")) },
			"hang":   func(t *rapid.T) { r.hangs[node.Draw(t, "node")] = rapid.Bool().Draw(t, "yes") },
			"answer": func(t *rapid.T) { r.answer(t, node.Draw(t, "node")) },
			"wait": func(t *rapid.T) {
				r.now = r.now.Add(time.Duration(rapid.IntRange(1, 6).Draw(t, "s")) * time.Second)
				r.happens(func() { r.tick(r.now) })
			},
			"": r.check,
		})

		r.happens(func() { r.publish(drawStaged(t), r.now) })
		r.hangs["a"] = false
		r.join("a", false, r.now)
		for range len(stageNodes) + 1 { // a trial that runs, and one for each that hangs
			for range 10 { // rejections one after the other
				for _, n := range stageNodes {
					r.answer(t, n)
					r.check(t)
				}
			}
			r.now = r.now.Add(patience)
			r.happens(func() { r.tick(r.now) })
		}
		if r.trial != nil || !r.good.alike(withhold(r.want, r.good, r.refused)) {
			t.Fatalf("not at rest: trial %+v", r.trial)
		}
		if !slices.ContainsFunc(keys(r.want), r.bad) && !r.good.alike(r.want) {
			t.Fatal("nothing is bad, and not all of it is released")
		}
	})
}

func TestStageHoldsBackWhatRefersToTheRejected(t *testing.T) {
	first := resourceSet{}
	for _, typeURL := range staged {
		first[typeURL] = setOf(map[string]string{"x": "v1", "old": "v1"})
	}
	for bad, want := range map[string]map[string]string{ // type that is bad → type → version of x
		typeCluster:  {typeCluster: "v1", typeSecret: "v2", typeListener: "v2", typeRoute: "v1"},
		typeSecret:   {typeCluster: "v2", typeSecret: "v1", typeListener: "v1", typeRoute: "v1"},
		typeListener: {typeCluster: "v2", typeSecret: "v2", typeListener: "v1", typeRoute: "v1"},
		typeRoute:    {typeCluster: "v2", typeSecret: "v2", typeListener: "v2", typeRoute: "v1"},
	} {
		t.Run(shortType(bad), func(t *testing.T) {
			second := resourceSet{}
			for _, typeURL := range staged {
				second[typeURL] = setOf(map[string]string{"x": "v2"})
			}
			got := withhold(second, first, map[resourceKey]verdict{{bad, version{"x", "v2"}}: {}})
			for typeURL, hash := range want {
				if have := got[typeURL].byName["x"].version; have != hash {
					t.Errorf("%s is %s, want %s", shortType(typeURL), have, hash)
				}
			}
			if _, kept := got[typeCluster].byName["old"]; !kept {
				t.Error("a cluster goes that routes refer to")
			}
			fromNothing := withhold(second, nil, map[resourceKey]verdict{{bad, version{"x", "v2"}}: {}})
			for _, typeURL := range staged {
				if _, has := fromNothing[typeURL].byName["x"]; has == (typeURL == bad) {
					t.Errorf("where there was nothing before, %s is in: %t", shortType(typeURL), has)
				}
			}
		})
	}
}

func TestStageIsNotHeldUp(t *testing.T) {
	good := func(resourceKey) bool { return false }
	published := func(hash string) resourceSet {
		out := resourceSet{}
		for _, typeURL := range staged {
			out[typeURL] = setOf(map[string]string{"x": hash})
		}
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		r := newStagedRegion(good)
		hanging := rapid.IntRange(0, 3).Draw(t, "how many hang")
		for i, node := range stageNodes {
			r.hangs[node] = i < hanging
			r.join(node, true, r.now)
		}
		r.publish(published("v1"), r.now)
		for range hanging {
			if r.good != nil {
				t.Fatal("released though the one that tries has not answered")
			}
			r.now = r.now.Add(patience)
			r.tick(r.now)
		}
		for _, node := range stageNodes {
			r.answer(t, node)
		}
		if !r.good.alike(published("v1")) {
			t.Fatalf("%d hang, and after as many bounds it is not released", hanging)
		}
		r.publish(published("v2"), r.now)
		for _, node := range stageNodes {
			r.answer(t, node)
		}
		if !r.good.alike(published("v2")) {
			t.Fatal("those that hung before are asked first again")
		}
	})
}

func TestStageReleasesWhatNobodyAsksFor(t *testing.T) {
	set := resourceSet{}
	for _, typeURL := range staged {
		set[typeURL] = setOf(map[string]string{"x": "v1"})
	}
	s := newStage(patience)
	s.join("a", true, at)
	s.publish(set, at)
	s.report("a", report{idle: true}, at)
	s.tick(at.Add(patience - 1))
	if s.good != nil {
		t.Fatal("released before its time")
	}
	s.tick(at.Add(patience))
	if !s.good.alike(set) {
		t.Fatal(fmt.Sprint("not released: ", s.trial))
	}

	next := func(hash string) resourceSet {
		out := resourceSet{}
		for _, typeURL := range staged {
			out[typeURL] = setOf(map[string]string{"x": hash})
		}
		return out
	}
	s.publish(next("v2"), at.Add(patience))
	s.publish(next("v3"), at.Add(patience))
	if !s.target("a").alike(next("v2")) {
		t.Fatal("a trial was replaced while the Envoy had not answered")
	}
	s.report("a", report{idle: true}, at.Add(patience))
	s.publish(next("v4"), at.Add(patience))
	if !s.target("a").alike(next("v4")) {
		t.Fatal("an Envoy that has all it asks for waits for the bound")
	}
}
