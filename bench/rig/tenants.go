package rig

import (
	"crypto/ed25519"
	"time"

	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/tenant"
)

// Tenants holds a list of one tenant, signed here, who may do anything.
func Tenants(name string, edgeToken credential.Digest) (*tenant.Keeper, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	one := tenant.Tenant{Name: name, EdgeTokens: tenant.Digests{edgeToken}, EnclaveTokens: tenant.Digests{edgeToken}}
	file, err := tenant.Sign(private, &tenant.List{Version: 1, ExpiresAt: time.Now().Add(24 * time.Hour), Tenants: []tenant.Tenant{one}})
	if err != nil {
		return nil, err
	}
	keeper, err := tenant.NewKeeper(public)
	if err != nil {
		return nil, err
	}
	return keeper, keeper.Offer(file, time.Now())
}
