package tenant

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// SAN is a subject alternative name of a client's certificate (RFC 5280, section
// 4.2.1.6) that names a tenant: "uri:" and a URI, such as a SPIFFE id, or "dns:" and
// a name in lower case. It is compared as it is.
type SAN string

const (
	sanURI = "uri:"
	sanDNS = "dns:"

	maxSANs     = 8
	maxSANBytes = 512
)

var dnsName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// check wants what one certificate can have and one header can say: no wildcard, which
// would name whoever gets a certificate of that kind.
func (s SAN) check() error {
	bad := fmt.Errorf(`%.64q: want "uri:" and a URI with a host, or "dns:" and a host's name in lower case`, string(s))
	if len(s) > maxSANBytes || strings.ContainsFunc(string(s), func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`,"\`, c) }) {
		return bad
	}
	if name, is := strings.CutPrefix(string(s), sanDNS); is {
		if !dnsName.MatchString(name) || len(name) > 253 {
			return bad
		}
		return nil
	}
	text, is := strings.CutPrefix(string(s), sanURI)
	u, err := url.Parse(text)
	if !is || err != nil || u.Scheme == "" || u.Host == "" || u.User != nil {
		return bad
	}
	return nil
}

// AdmitCertificate gives the tenant that a client's certificate names, which somebody
// who is trusted has verified; [ErrNoList], or [ErrUnknown] for whatever else is
// wrong.
func (s *Set) AdmitCertificate(name string, san SAN, now time.Time) (*Tenant, error) {
	t, err := s.Find(name, now)
	if err == nil && !slices.Contains(t.SANs, san) {
		return nil, ErrUnknown
	}
	return t, err
}
