package routing

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/mrgc/mrgc/internal/fleet"
)

// SplitTotal is what the weights of a [Split] add up to: they are per mille.
const SplitTotal = 1000

// maxVersions bounds a split: more versions than a client has recipients could
// not all be offered to it.
const maxVersions = 8

// Version is a version of a model, and its share of the model's requests.
type Version struct {
	Name   string // as instances register it
	Weight int    // per mille
}

// Split is how a model's requests are divided between its versions. The zero
// value does not divide: all instances of the model are alike, whatever their
// version.
//
// A version of weight 0 gets no request, and neither does one that is not listed:
// its instances are not picked and not offered, even if no others are ready. The
// first is how a version is withdrawn, for whatever reason it is; the second lets
// instances of a new one be started before anything is sent there. An instance
// that does not say its version has one that is not listed.
//
// Which version a request goes to is a function of its conversation, or of itself
// if it has none, and the weights: weighted rendezvous hashing. A version whose
// weight rises takes conversations from the others and gives none away, so that as
// few move as can be; in which order versions are listed does not matter.
type Split []Version

// Validate checks names and weights.
func (s Split) Validate() error {
	total := 0
	for i, v := range s {
		switch {
		case v.Name == "":
			return fmt.Errorf("version %d has no name", i)
		case slices.ContainsFunc(s[:i], func(o Version) bool { return o.Name == v.Name }):
			return fmt.Errorf("version %q is listed twice", v.Name)
		case v.Weight < 0 || v.Weight > SplitTotal:
			return fmt.Errorf("version %q has weight %d: want 0 to %d", v.Name, v.Weight, SplitTotal)
		}
		total += v.Weight
	}
	switch {
	case len(s) > maxVersions:
		return fmt.Errorf("there are %d versions: want at most %d", len(s), maxVersions)
	case len(s) > 0 && total != SplitTotal:
		return fmt.Errorf("the weights add up to %d: want %d", total, SplitTotal)
	}
	return nil
}

// With gives a version another weight, and the others what that leaves, in
// proportion to what they have. The only other one takes it whatever it had.
func (s Split) With(name string, weight int) (Split, error) {
	at := slices.IndexFunc(s, func(v Version) bool { return v.Name == name })
	switch {
	case at < 0:
		return nil, fmt.Errorf("version %q is not listed", name)
	case weight < 0 || weight > SplitTotal:
		return nil, fmt.Errorf("version %q: weight %d: want 0 to %d", name, weight, SplitTotal)
	}
	out := slices.Clone(s)
	out[at].Weight = weight
	left, before := SplitTotal-weight, SplitTotal-s[at].Weight
	switch {
	case len(s) == 2:
		out[1-at].Weight = left
		return out, nil
	case left > 0 && before == 0:
		return nil, fmt.Errorf("no other version than %q has a weight, so that none can take the rest: give one of them a weight first", name)
	}
	seen, given := 0, 0
	for i := range out {
		if i == at || before == 0 {
			continue
		}
		seen += s[i].Weight
		upTo := (seen*left + before/2) / before
		out[i].Weight, given = upTo-given, upTo
		if out[i].Weight == 0 && s[i].Weight > 0 && left > 0 {
			return nil, fmt.Errorf("version %q would be left with less than 1 per mille, and 0 withdraws it: set it to 0 first if that is meant", out[i].Name)
		}
	}
	return out, nil
}

// Of is the version that the split chooses for a conversation, or for a request
// by its id; empty if it does not divide.
func (s Split) Of(key string) string {
	var buf [maxVersions]string
	if order := s.order(buf[:0], hashOf(key)); len(order) > 0 {
		return order[0]
	}
	return ""
}

// order appends the versions that get requests to dst: the chosen one first, then
// those that stand in for it, each as if those before were not there. Each has an
// exponentially distributed key whose rate is its weight, and the lowest win; as
// keys depend on nothing else, a change of one weight moves nothing between the
// others.
func (s Split) order(dst []string, h hash) []string {
	var keys [maxVersions]float64
	for _, v := range s {
		if v.Weight <= 0 || len(dst) == maxVersions {
			continue
		}
		key := -math.Log(1-fraction(h.rendezvous(v.Name), forVersion)) / float64(v.Weight)
		at := len(dst)
		dst = append(dst, v.Name)
		for ; at > 0 && (key < keys[at-1] || key == keys[at-1] && v.Name < dst[at-1]); at-- {
			dst[at], keys[at] = dst[at-1], keys[at-1]
		}
		dst[at], keys[at] = v.Name, key
	}
	return dst
}

// rank is the place of an instance's version in an order that [Split.order] gave,
// below 0 if it gets no requests. Without a split all have the first.
func (s Split) rank(order []string, in *fleet.Instance, model string) int {
	if len(s) == 0 {
		return 0
	}
	return slices.Index(order, in.Versions[model])
}

// fallbackScale is the mean weight of an instance that [Split.Weights] gives: one
// per mille of a few instances is then still more than the least weight, 1.
const fallbackScale = 1000

// Scored is an instance, and how much it has to give: 1 to 100.
type Scored struct {
	Instance *fleet.Instance
	Score    uint32
}

// Weights are those by which a balancer that knows no versions keeps to the split
// among instances of a model: the share of each one's version, by its part of the
// scores of that version. A weight of 0 means that an instance gets nothing, and is
// not to be listed. What a version without instances lacks the others take, by
// their shares. Without a split the weights are the scores.
func (s Split) Weights(model string, instances []Scored) []uint32 {
	weights := make([]uint32, len(instances))
	scores := map[string]float64{} // by version
	for i, in := range instances {
		weights[i] = in.Score
		scores[in.Instance.Versions[model]] += float64(in.Score)
	}
	if len(s) == 0 {
		return weights
	}
	share := map[string]float64{} // of those that have instances
	total := 0.0
	for _, v := range s {
		if scores[v.Name] > 0 {
			share[v.Name] = float64(v.Weight)
			total += float64(v.Weight)
		}
	}
	for i, in := range instances {
		weights[i] = 0
		version := in.Instance.Versions[model]
		if share[version] > 0 && in.Score > 0 {
			part := share[version] / total * float64(in.Score) / scores[version]
			weights[i] = max(1, uint32(math.Round(part*fallbackScale*float64(len(instances)))))
		}
	}
	return weights
}

// cover moves one instance of each version to the head of those that are in order of
// luck, the versions in the order that was drawn for them, as far as there are n
// places; and says how many places that took.
func cover(rs []ranked, n int) (taken int) {
	if !slices.ContainsFunc(rs, func(r ranked) bool { return r.drawn != rs[0].drawn }) {
		return 0
	}
	for taken < min(n, len(rs)) {
		next := -1
		for i := taken; i < len(rs); i++ {
			if versionIn(rs[:taken], rs[i].drawn) {
				continue
			}
			if next < 0 || cmp.Less(rs[i].drawn, rs[next].drawn) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		toFront(rs[taken:], next-taken)
		taken++
	}
	return taken
}

func versionIn(rs []ranked, version int) bool {
	return slices.ContainsFunc(rs, func(r ranked) bool { return r.drawn == version })
}

// versions counts the different ones.
func versions(rs []ranked) (n int) {
	for i := range rs {
		if !versionIn(rs[:i], rs[i].drawn) {
			n++
		}
	}
	return n
}
