package enclave

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/kms"
	"github.com/mrgc/mrgc/internal/seal"
)

// dataKeys has KMS decrypt the data key of one request; nil: KMS is not asked
// here. A request that was run already is refused before KMS is asked: else
// whoever has seen one could have KMS asked, at its price, as often as he likes.
func (e *Enclave) dataKeys(ctx context.Context, key seal.KeyID, request seal.RequestID, tenant string) seal.DecryptDataKey {
	if e.config.KMS == nil {
		return nil
	}
	return func(ciphertext []byte, encryptionContext map[string]string) ([]byte, error) {
		if e.replays.Has(key, request) {
			return nil, seal.ErrReplayed
		}
		began := e.config.Now()
		plaintext, err := e.config.KMS.Decrypt(ctx, ciphertext, encryptionContext)
		ended := e.config.Now()
		done := api.KeyRelease{Time: ended, Took: ended.Sub(began), RequestID: request.String(), Tenant: tenant}
		if err != nil {
			e.config.Logger.Warn("KMS gave no data key", "request", request, "error", err)
			done.Error = err.Error()
		}
		e.releases.add(done)
		return plaintext, err
	}
}

// kmsRefusal is the unsealed answer when KMS gave no data key; nil for other
// errors.
func kmsRefusal(err error) *api.Error {
	switch {
	case errors.Is(err, kms.ErrDenied):
		return api.Errorf(http.StatusForbidden, "kms_denied",
			"KMS does not release the request's data key to this enclave: the key's policy has to allow the cluster's role and the enclave's release (mrgc keys policy), and the key has to be enabled")
	case errors.Is(err, seal.ErrNoKMS):
		// No 503: it is the sender's doing alone, and must not make the instance look
		// like one that fails, to Envoy and pickers.
		return api.Errorf(http.StatusBadRequest, "kms_not_asked",
			"this cluster's enclaves ask no KMS (mrgc-enclave -kms): leave the KMS key out, or ask the operator")
	case errors.Is(err, kms.ErrUnavailable):
		unreachable := api.Errorf(http.StatusServiceUnavailable, "kms_unreachable", "the instance's enclave cannot ask KMS; try again")
		unreachable.RetryAfter = time.Second
		return unreachable
	default:
		return nil
	}
}

// maxCredentialsBytes is above what AWS's session tokens need.
const maxCredentialsBytes = 16 << 10

// serveCredentials says which credentials are held.
func (e *Enclave) serveCredentials(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(api.AWSCredentialsHeld{AccessKeyID: e.config.KMS.AccessKeyID()}) // the parent asks again
}

// takeCredentials takes credentials from the parent. They open nothing: with
// false ones KMS refuses.
func (e *Enclave) takeCredentials(w http.ResponseWriter, r *http.Request) {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCredentialsBytes))
	dec.DisallowUnknownFields()
	var c api.AWSCredentials
	if err := dec.Decode(&c); err != nil || c.AccessKeyID == "" || c.SecretAccessKey == "" {
		api.Errorf(http.StatusBadRequest, "invalid_request", "want access_key_id and secret_access_key").Write(w)
		return
	}
	e.config.KMS.SetCredentials(kms.Credentials(c))
	if e.fleet != nil {
		e.fleet.credentials(kms.Credentials(c))
	}
	w.WriteHeader(http.StatusNoContent)
}
