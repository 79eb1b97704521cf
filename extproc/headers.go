package extproc

import (
	"bytes"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/quota"
	"github.com/mrgc/mrgc/internal/size"
)

// Limits of what a sealed request's headers may carry.
const (
	maxNameBytes    = 256 // of a model, a tenant, an affinity key
	maxRecipients   = 64
	keyIDDigits     = 16 // 8 bytes in hex
	requestIDDigits = 32 // 16 bytes in hex
)

// request is what the picker reads of a request's headers.
type request struct {
	envoyID string // Envoy's x-request-id; empty when Envoy makes none
	bearer  []byte // edge token, secret; nil when there is none that can be read
	hides   bool   // has an Authorization header that cannot be read
	san     string // the name by which Envoy knows its client's certificate; empty when there is none

	model, tenant, id string
	recipients        []string
	affinity          string       // empty when there is none
	size              size.Buckets // as declared; zero when it is not

	sealed bool   // has the content type of a sealed request, once
	fault  string // the first Mrgc header that is missing, malformed or repeated

	weight  int           // its tenant's; 0 until that is known
	taken   quota.Request // from its tenant's limits; zero until it has been let through
	decided bool          // whether it could be picked for has been decided, and is on record
}

// field is a header as it came: its last value, and how often it was there.
// Envoy passes a repeated header on as several entries, or as one whose values
// are joined by commas; the second form is refused where values are checked.
type field struct {
	value string
	times int
}

// fields are the headers that matter, except Authorization.
type fields struct {
	contentType, envoyID, san                     field
	model, tenant, recipients, id, affinity, size field
}

// named gives the place of a header, nil for one that does not matter. Envoy
// sends names in lower case; nothing depends on it.
func (f *fields) named(name string) *field {
	switch {
	case strings.EqualFold(name, "content-type"):
		return &f.contentType
	case strings.EqualFold(name, "x-request-id"):
		return &f.envoyID
	case strings.EqualFold(name, api.HeaderTenantSAN):
		return &f.san
	case strings.EqualFold(name, api.HeaderModel):
		return &f.model
	case strings.EqualFold(name, api.HeaderTenant):
		return &f.tenant
	case strings.EqualFold(name, api.HeaderRecipients):
		return &f.recipients
	case strings.EqualFold(name, api.HeaderRequestID):
		return &f.id
	case strings.EqualFold(name, api.HeaderAffinity):
		return &f.affinity
	case strings.EqualFold(name, api.HeaderSize):
		return &f.size
	}
	return nil
}

// readHeaders reads a request and notes what is wrong with it.
func readHeaders(headers []*corev3.HeaderValue) request {
	var f fields
	for _, h := range headers {
		if place := f.named(h.GetKey()); place != nil {
			place.value = string(raw(h))
			place.times++
		}
	}
	token, given := bearer(headers)
	req := request{
		envoyID: f.envoyID.value,
		bearer:  token,
		hides:   given && token == nil || f.san.times > 1,
		san:     f.san.value,
		model:   f.model.value,
		tenant:  f.tenant.value,
		id:      f.id.value,

		affinity: f.affinity.value,
		sealed:   f.contentType.times == 1 && strings.EqualFold(f.contentType.value, api.ContentTypeSealedRequest),
	}
	var recipientsOK bool
	req.recipients, recipientsOK = parseRecipients(f.recipients.value)
	var badSize error
	if f.size.times > 0 {
		req.size, badSize = size.Parse(f.size.value)
	}
	for _, must := range []struct {
		header string
		field  field
		absent bool // may be absent
		ok     bool
	}{
		{api.HeaderModel, f.model, false, isName(f.model.value)},
		{api.HeaderTenant, f.tenant, false, isName(f.tenant.value)},
		{api.HeaderRecipients, f.recipients, false, recipientsOK},
		{api.HeaderRequestID, f.id, false, isHex(f.id.value, requestIDDigits)},
		{api.HeaderAffinity, f.affinity, true, isName(f.affinity.value)},
		{api.HeaderSize, f.size, true, badSize == nil},
	} {
		if must.absent && must.field.times == 0 {
			continue
		}
		if must.field.times != 1 || !must.ok {
			req.fault = must.header
			break
		}
	}
	return req
}

// raw is a header's value: Envoy sends raw_value, or value when it is told to by
// a runtime flag. The bytes may be the message's own.
func raw(h *corev3.HeaderValue) []byte {
	if len(h.GetRawValue()) > 0 {
		return h.GetRawValue()
	}
	return []byte(h.GetValue())
}

// bearer finds the token of the one Authorization header (RFC 6750, section
// 2.1), and says whether there is any such header; nil when there is none, or more
// than one, or another scheme.
func bearer(headers []*corev3.HeaderValue) (token []byte, seen bool) {
	for _, h := range headers {
		if !isAuthorization(h) {
			continue
		}
		if seen {
			return nil, true
		}
		seen = true
		scheme, rest, ok := bytes.Cut(raw(h), []byte(" "))
		if ok && bytes.EqualFold(scheme, []byte("Bearer")) && !bytes.ContainsAny(rest, " ,") {
			token = rest
		}
	}
	return token, seen
}

// wipe clears the credentials in a message that has been dealt with.
func wipe(headers []*corev3.HeaderValue) {
	for _, h := range headers {
		if isAuthorization(h) {
			clear(h.GetRawValue())
		}
	}
}

func isAuthorization(h *corev3.HeaderValue) bool {
	return strings.EqualFold(h.GetKey(), "authorization")
}

// isName says whether s is one opaque name: visible ASCII, and no comma, which
// would be two headers joined.
func isName(s string) bool {
	return s != "" && len(s) <= maxNameBytes &&
		!strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || c == ',' })
}

// parseRecipients reads key ids. Spaces, capitals, empty and repeated ids are
// refused: the envelope binds the list, so there is one way to write it.
func parseRecipients(s string) (kids []string, ok bool) {
	n := strings.Count(s, ",") + 1
	if n > maxRecipients {
		return nil, false
	}
	kids = make([]string, 0, n)
	for kid := range strings.SplitSeq(s, ",") {
		if !isHex(kid, keyIDDigits) || slices.Contains(kids, kid) {
			return nil, false
		}
		kids = append(kids, kid)
	}
	return kids, true
}

func isHex(s string, digits int) bool {
	return len(s) == digits &&
		!strings.ContainsFunc(s, func(c rune) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'f') })
}
