package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/standin/devca"
)

// Region is where everything of a benchmark stands.
const Region fleet.Region = "use1"

// Model is what its engines serve.
const Model = "sim"

// InstanceID names an instance of a benchmark, KeyID its key.
func InstanceID(i int) string { return fmt.Sprintf("%s-%d", Region, i) }

// KeyID is the id of an instance's key.
func KeyID(i int) string { return fmt.Sprintf("%016x", i+1) }

// WriteIdentities makes an authority and certificates in dir: of the tenants'
// port, of a router, an Envoy, and so many instances, whose directories it gives.
func WriteIdentities(dir string, instances int) (parents []string, err error) {
	ca, err := devca.New(time.Now())
	if err != nil {
		return nil, err
	}
	for i := range instances {
		at := filepath.Join(dir, InstanceID(i))
		parents = append(parents, at)
		if err := writeIdentity(ca, at, identity.ID{Region: string(Region), Instance: InstanceID(i), Role: identity.RoleParent}); err != nil {
			return nil, err
		}
	}
	for _, role := range []identity.Role{identity.RoleRouter, identity.RoleEnvoy} {
		if err := writeIdentity(ca, filepath.Join(dir, string(role)), identity.ID{Region: string(Region), Role: role}); err != nil {
			return nil, err
		}
	}
	certPEM, keyPEM, err := ca.ServerCertificate(time.Now(), "localhost")
	if err != nil {
		return nil, err
	}
	return parents, errors.Join(os.WriteFile(filepath.Join(dir, "tenant.crt"), certPEM, 0o600),
		os.WriteFile(filepath.Join(dir, "tenant.key"), keyPEM, 0o600), os.WriteFile(filepath.Join(dir, "ca.crt"), ca.RootPEM(), 0o600))
}

func writeIdentity(ca *devca.Authority, dir string, id identity.ID) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return ca.WriteFiles(dir, id, time.Now())
}
