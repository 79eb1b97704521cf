package router

import (
	"context"
	"fmt"
	"os"
	"time"
)

// certificatePoll is how soon a renewed tenant certificate is taken up.
const certificatePoll = 5 * time.Second

// loadTenantCertificate takes the files up as they are now.
func (r *Router) loadTenantCertificate() error {
	r.loaded = r.tenantFiles()
	certPEM, err := os.ReadFile(r.config.TenantCertificate)
	if err != nil {
		return fmt.Errorf("router: tenant certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(r.config.TenantKey)
	if err != nil {
		return fmt.Errorf("router: tenant key: %w", err)
	}
	if r.config.TenantClientCA != "" {
		clients, err := os.ReadFile(r.config.TenantClientCA)
		if err != nil {
			return fmt.Errorf("router: CA of tenants' certificates: %w", err)
		}
		if err := r.xds.SetTenantClientCA(clients); err != nil {
			return fmt.Errorf("router: %s: %w", r.config.TenantClientCA, err)
		}
	}
	return r.xds.SetTenantCertificate(certPEM, keyPEM)
}

// watchTenantCertificate pushes a renewed certificate by SDS. One that does not
// load leaves the present one in place.
func (r *Router) watchTenantCertificate(ctx context.Context) {
	ticker := time.NewTicker(r.certificatePoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if r.tenantFiles() == r.loaded {
			continue
		}
		if err := r.loadTenantCertificate(); err != nil {
			r.log.Error("renewed tenant certificate does not load; the old one stays", "error", err)
		}
	}
}

// tenantFiles says which versions of certificate, key and CA lie there, by their
// times: any may be written first.
func (r *Router) tenantFiles() (versions [3]int64) {
	for i, path := range []string{r.config.TenantCertificate, r.config.TenantKey, r.config.TenantClientCA} {
		if info, err := os.Stat(path); err == nil {
			versions[i] = info.ModTime().UnixNano()
		}
	}
	return versions
}
