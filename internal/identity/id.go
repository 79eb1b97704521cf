// Package identity gives every part of the cluster a name that its peers can
// verify, and the TLS configurations that verify it.
//
// Names are SPIFFE ids (github.com/spiffe/spiffe, standards/SPIFFE-ID.md),
// carried as the only URI SAN of an X.509 certificate (X509-SVID.md):
//
//	spiffe://mrgc.internal/region/use1/router
//	spiffe://mrgc.internal/region/use1/envoy
//	spiffe://mrgc.internal/region/use1/controller
//	spiffe://mrgc.internal/region/use1/instance/use1-0/parent
//	spiffe://mrgc.internal/region/use1/instance/use1-0/enclave
//	spiffe://mrgc.internal/region/use1/instance/use1-0/guard
//
// A [Source] holds a process's own certificate and the roots it trusts; every
// connection is TLS 1.3, mutual, and admitted by a predicate over the peer's
// [ID]. Host names play no part.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// TrustDomain is the SPIFFE trust domain of a cluster.
const TrustDomain = "mrgc.internal"

// Role is what a part does.
type Role string

// The roles that have an identity.
const (
	RoleRouter     Role = "router"
	RoleEnvoy      Role = "envoy"
	RoleController Role = "controller"
	RoleParent     Role = "parent"
	RoleEnclave    Role = "enclave"
	RoleGuard      Role = "guard"
)

// ID names one part of the cluster. The zero value names none.
type ID struct {
	Region   string
	Instance string // empty for router, envoy and controller
	Role     Role
}

var segment = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Validate checks the parts of an ID.
func (id ID) Validate() error {
	if !segment.MatchString(id.Region) {
		return fmt.Errorf("identity: bad region %q", id.Region)
	}
	switch id.Role {
	case RoleRouter, RoleEnvoy, RoleController:
		if id.Instance != "" {
			return fmt.Errorf("identity: %s has no instance, got %q", id.Role, id.Instance)
		}
	case RoleParent, RoleEnclave, RoleGuard:
		if !segment.MatchString(id.Instance) {
			return fmt.Errorf("identity: bad instance %q", id.Instance)
		}
	default:
		return fmt.Errorf("identity: unknown role %q", id.Role)
	}
	return nil
}

// String is the SPIFFE id.
func (id ID) String() string {
	path := "/region/" + id.Region
	if id.Instance != "" {
		path += "/instance/" + id.Instance
	}
	return "spiffe://" + TrustDomain + path + "/" + string(id.Role)
}

// URL is the SPIFFE id as a certificate carries it.
func (id ID) URL() *url.URL {
	u, err := url.Parse(id.String())
	if err != nil { // every segment has been validated
		panic(err)
	}
	return u
}

// Parse reads a SPIFFE id of this trust domain.
func Parse(text string) (ID, error) {
	path, ok := strings.CutPrefix(text, "spiffe://"+TrustDomain+"/region/")
	if !ok {
		return ID{}, fmt.Errorf("identity %q is not of trust domain %s", text, TrustDomain)
	}
	var id ID
	switch parts := strings.Split(path, "/"); {
	case len(parts) == 2:
		id = ID{Region: parts[0], Role: Role(parts[1])}
	case len(parts) == 4 && parts[1] == "instance":
		id = ID{Region: parts[0], Instance: parts[2], Role: Role(parts[3])}
	default:
		return ID{}, fmt.Errorf("identity %q has an unknown path", text)
	}
	if err := id.Validate(); err != nil {
		return ID{}, err
	}
	return id, nil
}

// Of is the identity that a certificate carries. A certificate with any number
// of URI SANs but one carries none (X509-SVID section 2).
func Of(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, errors.New("identity: the certificate does not have exactly one URI")
	}
	return Parse(cert.URIs[0].String())
}
