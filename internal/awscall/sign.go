package awscall

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
)

// sign makes a request one of an operation in the JSON protocol and signs it with
// Signature Version 4 (AWS IAM user guide, "Create a signed AWS API request").
// The request is always POST / without a query, so that nothing needs escaping;
// its header fields are set here, in the order of their names.
func (c *Config) sign(req *http.Request, operation string, body []byte, credentials Credentials) {
	at := c.Now().UTC().Format("20060102T150405Z")
	fields := [][2]string{
		{"content-type", c.Service.contentType},
		{"host", req.URL.Host},
		{"x-amz-date", at},
		{"x-amz-security-token", credentials.SessionToken},
		{"x-amz-target", c.Service.target + operation},
	}
	var headers, names string
	for _, field := range fields {
		if field[1] == "" {
			continue // no session token
		}
		headers += field[0] + ":" + field[1] + "\n"
		names += ";" + field[0]
		if field[0] != "host" {
			req.Header.Set(field[0], field[1])
		}
	}
	names = names[1:]
	canonical := "POST\n/\n\n" + headers + "\n" + names + "\n" + hexSHA256(body)
	scope := at[:8] + "/" + c.Region + "/" + c.Service.name + "/aws4_request"

	key := []byte("AWS4" + credentials.SecretAccessKey)
	for _, part := range []string{at[:8], c.Region, c.Service.name, "aws4_request"} {
		key = hmacSHA256(key, part)
	}
	signature := hmacSHA256(key, "AWS4-HMAC-SHA256\n"+at+"\n"+scope+"\n"+hexSHA256([]byte(canonical)))
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+credentials.AccessKeyID+"/"+scope+
		", SignedHeaders="+names+", Signature="+hex.EncodeToString(signature))
}

func hexSHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func hmacSHA256(key []byte, data string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(data))
	return mac.Sum(nil)
}
