package routing

import (
	"fmt"
	"slices"
)

// Policy is how a model's requests are ordered among the instances of a region
// that can serve them. The zero value is the default.
type Policy uint8

// Policies, by their names in mrgc.yaml.
const (
	// PolicyGateThenLoad, "gate-then-load": a request of a conversation goes to its
	// home, where its prompt's beginning is likely to be cached, until that
	// instance is saturated ([GateMargin]). Any other goes where its first token is
	// predicted to come first.
	PolicyGateThenLoad Policy = iota
	// PolicyScore, "score": the highest [Score] of the present load first.
	PolicyScore
	// PolicyLeastInFlight, "least-in-flight": the fewest requests that the picker
	// itself has in flight there first, then the highest [Score].
	PolicyLeastInFlight
	// PolicyPowerOfTwo, "power-of-two": of two instances drawn at random, the one
	// with fewer requests in flight.
	PolicyPowerOfTwo
	// PolicyRoundRobin, "round-robin": one after the other, by
	// [Request.Sequence], whatever their load.
	PolicyRoundRobin
)

var policyNames = [...]string{"gate-then-load", "score", "least-in-flight", "power-of-two", "round-robin"}

// ParsePolicy reads a policy's name.
func ParsePolicy(name string) (Policy, error) {
	for i, known := range policyNames {
		if name == known {
			return Policy(i), nil
		}
	}
	return 0, fmt.Errorf("policy %q: want gate-then-load, score, least-in-flight, power-of-two or round-robin", name)
}

// String is the policy's name, which ParsePolicy reads.
func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("policy(%d)", uint8(p))
}

// UnmarshalText is ParsePolicy, for configuration files.
func (p *Policy) UnmarshalText(name []byte) error {
	parsed, err := ParsePolicy(string(name))
	if err == nil {
		*p = parsed
	}
	return err
}

// PolicyNames are the names that ParsePolicy reads.
func PolicyNames() []string { return slices.Clone(policyNames[:]) }
