package xds

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
)

// version is a resource as it once was; "" is its removal.
type version struct{ name, hash string }

// rejection is why and when an Envoy refused something.
type rejection struct {
	message string
	at      time.Time
}

// maxRejections is how many an Envoy may have of a type. Beyond it the oldest is
// forgotten.
const maxRejections = 1000

// suspects are the resources that a NACK is about: those of the response that
// its message names, or all when it names none. xDS does not say it otherwise.
func suspects(sent []string, message string) map[string]bool {
	named, all := map[string]bool{}, map[string]bool{}
	for _, name := range sent {
		all[name] = true
		if strings.Contains(message, name) {
			named[name] = true
		}
	}
	if len(named) > 0 {
		return named
	}
	return all
}

// maxNACK is how much of a NACK is looked at, maxReason how much is kept.
const (
	maxNACK   = 64 << 10
	maxReason = 512
)

// reason is what a NACK says, fit to be shown: it comes from another process,
// and no key may be in it.
func reason(message string) string {
	message, _, secret := strings.Cut(message, "-----BEGIN")
	if secret {
		message += "(a PEM block, left out)"
	}
	message = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(strings.TrimSpace(message), " "))
	if len(message) > maxReason {
		message = strings.ToValidUTF8(message[:maxReason], "") + "…"
	}
	return message
}

// refuse quarantines what a NACK is about. The rest of the response may be in
// use or not, and is sent once more.
func (sub *subscription) refuse(sent *response, message string, now time.Time) {
	about, why := suspects(sent.names(), message), rejection{message: reason(message), at: now}
	for name, r := range sent.resources {
		if !about[name] {
			sub.again[name] = true
			continue
		}
		sub.quarantine(version{name, r.version}, why)
		if sub.accepted[name].version != r.version {
			sub.doubtful[name] = true
		}
	}
	for _, name := range sent.removed {
		if about[name] {
			sub.quarantine(version{name: name}, why)
		}
	}
}

// absolve ends the quarantine of a resource.
func (sub *subscription) absolve(name string) {
	maps.DeleteFunc(sub.rejected, func(v version, _ rejection) bool { return v.name == name })
}

func (sub *subscription) quarantine(v version, why rejection) {
	sub.rejected[v] = why
	if len(sub.rejected) <= maxRejections {
		return
	}
	oldest := v
	for other, since := range sub.rejected {
		if since.at.Before(sub.rejected[oldest].at) {
			oldest = other
		}
	}
	delete(sub.rejected, oldest)
}

// refuses says whether an Envoy has refused a version.
func (sub *subscription) refuses(name, hash string) bool {
	_, is := sub.rejected[version{name, hash}]
	return is
}

// rollback lists what was refused and is to be as the Envoy last accepted it:
// its content, or gone when there was none. xDS does not say what of a refused
// response is in use; afterwards it is known.
func (sub *subscription) rollback() (resources map[string]resource, removed []string) {
	if len(sub.doubtful) == 0 {
		return nil, nil
	}
	resources = map[string]resource{}
	for name := range sub.doubtful {
		switch has, had := sub.accepted[name]; {
		case has.body != nil:
			resources[name] = has.resource
		case !had && sub.wildcard:
			removed = append(removed, name)
		}
	}
	clear(sub.doubtful)
	slices.Sort(removed)
	return resources, removed
}

// quarantined lists what of a set the Envoy has refused, sorted by name.
func (sub *subscription) quarantined(want typeSet) []version {
	var out []version
	for v := range sub.rejected {
		r, exists := want.byName[v.name]
		if exists && r.version == v.hash && sub.asksFor(v.name) || !exists && v.hash == "" {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b version) int { return strings.Compare(a.name, b.name) })
	return out
}
