package softkms

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
)

// The operations that a key's policy has to keep people from, or that manage it: here
// for policies to be tried with, and no further than their answers' shape.

// createGrant is CreateGrant. What is granted here is nothing.
func (x *exchange) createGrant(body []byte) (any, *apiError) {
	var in struct {
		KeyID            string   `json:"KeyId"`
		GranteePrincipal string   `json:"GranteePrincipal"`
		Operations       []string `json:"Operations"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	if in.GranteePrincipal == "" || len(in.Operations) == 0 {
		return nil, errorf("ValidationException", "GranteePrincipal and Operations")
	}
	if _, _, refused := x.admit("kms:CreateGrant", in.KeyID, nil, nil); refused != nil {
		return nil, refused
	}
	return map[string]any{"GrantId": rand.Text(), "GrantToken": rand.Text()}, nil
}

// generateDataKeyWithoutPlaintext is GenerateDataKeyWithoutPlaintext.
func (x *exchange) generateDataKeyWithoutPlaintext(body []byte) (any, *apiError) {
	var in struct {
		KeyID             string            `json:"KeyId"`
		KeySpec           string            `json:"KeySpec"`
		EncryptionContext map[string]string `json:"EncryptionContext"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	if in.KeySpec != "AES_256" {
		return nil, errorf("ValidationException", "KeySpec AES_256 alone is known here")
	}
	k, _, refused := x.admit("kms:GenerateDataKeyWithoutPlaintext", in.KeyID, in.EncryptionContext, nil)
	if refused != nil {
		return nil, refused
	}
	plaintext := make([]byte, 32)
	defer clear(plaintext)
	rand.Read(plaintext) // never fails (crypto/rand)
	return map[string]any{"KeyId": x.event.Key, "CiphertextBlob": k.seal(plaintext, in.EncryptionContext)}, nil
}

// generateDataKeyPair is GenerateDataKeyPair.
func (x *exchange) generateDataKeyPair(body []byte) (any, *apiError) {
	return x.dataKeyPair("kms:GenerateDataKeyPair", true, body)
}

// generateDataKeyPairWithoutPlaintext is GenerateDataKeyPairWithoutPlaintext.
func (x *exchange) generateDataKeyPairWithoutPlaintext(body []byte) (any, *apiError) {
	return x.dataKeyPair("kms:GenerateDataKeyPairWithoutPlaintext", false, body)
}

func (x *exchange) dataKeyPair(action string, plaintext bool, body []byte) (any, *apiError) {
	var in struct {
		KeyID             string            `json:"KeyId"`
		KeyPairSpec       string            `json:"KeyPairSpec"`
		EncryptionContext map[string]string `json:"EncryptionContext"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	if in.KeyPairSpec != "ECC_NIST_P256" {
		return nil, errorf("ValidationException", "KeyPairSpec ECC_NIST_P256 alone is known here")
	}
	k, _, refused := x.admit(action, in.KeyID, in.EncryptionContext, nil)
	if refused != nil {
		return nil, refused
	}
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errorf("KMSInternalException", "%v", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(pair)
	if err != nil {
		return nil, errorf("KMSInternalException", "%v", err)
	}
	public, err := x509.MarshalPKIXPublicKey(pair.Public())
	if err != nil {
		return nil, errorf("KMSInternalException", "%v", err)
	}
	out := map[string]any{
		"KeyId": x.event.Key, "KeyPairSpec": in.KeyPairSpec, "PublicKey": public,
		"PrivateKeyCiphertextBlob": k.seal(private, in.EncryptionContext),
	}
	if plaintext {
		out["PrivateKeyPlaintext"] = private
	}
	return out, nil
}

// getKeyPolicy is GetKeyPolicy, which stands for all that manages a key.
func (x *exchange) getKeyPolicy(body []byte) (any, *apiError) {
	var in struct {
		KeyID      string `json:"KeyId"`
		PolicyName string `json:"PolicyName"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	if _, _, refused := x.admit("kms:GetKeyPolicy", in.KeyID, nil, nil); refused != nil {
		return nil, refused
	}
	return map[string]any{"PolicyName": "default"}, nil // its text is not asked for here
}
