package client

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/seal"
)

// DataKeys makes data keys with a tenant's KMS key. Package client/kmskey does so
// with AWS's.
type DataKeys interface {
	// Generate has KMS make a data key of 32 bytes that it decrypts in the same
	// encryption context only. Each call makes another one; the plaintext is the
	// caller's to wipe. It may be called concurrently, and ends with ctx.
	Generate(ctx context.Context, encryptionContext map[string]string) (plaintext, ciphertext []byte, err error)
	// Region is the one AWS region in which the ciphertexts can be decrypted;
	// empty: all those of the cluster, as with a multi-region key that has replicas
	// there.
	Region() string
}

// dataKey makes the data key of one request, whose id has been drawn.
func (c *Client) dataKey(ctx context.Context, request *seal.Request) (*seal.DataKey, *api.Error) {
	plaintext, ciphertext, err := c.config.DataKeys.Generate(ctx, seal.EncryptionContext(request.RequestID, request.Tenant))
	if err != nil {
		return nil, api.Errorf(http.StatusBadGateway, "kms_failed", "your KMS key gave no data key, so nothing was sent: %v", err)
	}
	return &seal.DataKey{Plaintext: plaintext, Ciphertext: ciphertext}, nil
}

// confine keeps requests in the one AWS region where their data keys can be
// decrypted: elsewhere enclaves would be asked in vain. Empty: any.
func (p *Policy) confine(awsRegion string) error {
	if awsRegion == "" {
		return nil
	}
	for _, name := range []fleet.Region{"use1", "use2", "usw2"} {
		if name.AWS() != awsRegion {
			continue
		}
		if len(p.Regions) > 0 && !slices.Contains(p.Regions, string(name)) {
			return fmt.Errorf("client: the KMS key is of %s (%s), where requests may not go: use a multi-region key with a replica where they may", awsRegion, name)
		}
		p.Regions = []string{string(name)}
		return nil
	}
	return fmt.Errorf("client: the KMS key is of %s, where no cluster is: use a multi-region key with a replica where one is", awsRegion)
}
