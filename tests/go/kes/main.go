// Calls a key server through MinIO's own KES client, over HTTP/2 and with an API key: what stores do.
//
// Usage: kes ENDPOINT CA_FILE API_KEY
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/minio/kms-go/kes"
)

func main() {
	if len(os.Args) != 4 {
		panic("usage: kes ENDPOINT CA_FILE API_KEY")
	}
	pem, err := os.ReadFile(os.Args[2])
	check("the CA file", err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	key, err := kes.ParseAPIKey(os.Args[3])
	check("the API key", err)
	certificate, err := kes.GenerateCertificate(key)
	check("the certificate", err)
	client := kes.NewClientWithConfig(os.Args[1], &tls.Config{
		Certificates: []tls.Certificate{certificate},
		RootCAs:      roots,
	})
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()

	version, err := client.Version(ctx)
	check("version", err)
	expect("version", version != "")
	ready, err := client.IsReady(ctx)
	check("ready", err)
	expect("ready", ready)
	state, err := client.Status(ctx)
	check("status", err)
	expect("status", state.Version == version && state.KeyStoreReachable)
	apis, err := client.APIs(ctx)
	check("apis", err)
	expect("apis", len(apis) > 15)

	check("create", client.CreateKey(ctx, "go-1"))
	expect("create twice", errors.Is(client.CreateKey(ctx, "go-1"), kes.ErrKeyExists))
	check("import", client.ImportKey(ctx, "go-2", &kes.ImportKeyRequest{Key: bytes.Repeat([]byte{7}, 32), Cipher: kes.AES256}))
	info, err := client.DescribeKey(ctx, "go-1")
	check("describe", err)
	expect("describe", info.Name == "go-1" && info.CreatedBy == key.Identity() && time.Since(info.CreatedAt) < time.Hour)
	names, continueAt, err := client.ListKeys(ctx, "go-", 10)
	check("list", err)
	expect("list", len(names) == 2 && names[0] == "go-1" && continueAt == "")

	for _, name := range []string{"go-1", "go-2"} {
		aad := []byte(`{"bucket":"bucket/object"}`)
		dek, err := client.GenerateKey(ctx, name, aad)
		check("generate", err)
		plain, err := client.Decrypt(ctx, name, dek.Ciphertext, aad)
		check("decrypt", err)
		expect("decrypt", len(plain) == 32 && bytes.Equal(plain, dek.Plaintext))
		_, err = client.Decrypt(ctx, name, dek.Ciphertext, nil)
		expect("another context", errors.Is(err, kes.ErrDecrypt))
		sealed, err := client.Encrypt(ctx, name, []byte("hello"), nil)
		check("encrypt", err)
		plain, err = client.Decrypt(ctx, name, sealed, nil)
		check("decrypt", err)
		expect("decrypt", string(plain) == "hello")
		one, err := client.HMAC(ctx, name, []byte("hello"))
		check("hmac", err)
		two, err := client.HMAC(ctx, name, []byte("hello"))
		check("hmac", err)
		expect("hmac", len(one) == 32 && bytes.Equal(one, two))
	}

	self, _, err := client.DescribeSelf(ctx)
	check("describe self", err)
	expect("describe self", self.Identity == key.Identity() && self.IsAdmin)
	_, err = client.GetPolicy(ctx, "reader")
	check("policy", err)
	_, err = client.Metrics(ctx)
	check("metrics", err)

	check("delete", client.DeleteKey(ctx, "go-1"))
	_, err = client.GenerateKey(ctx, "go-1", nil)
	expect("deleted", errors.Is(err, kes.ErrKeyNotFound))
	fmt.Println("all well")
}

func check(what string, err error) {
	if err != nil {
		panic(fmt.Sprintf("%s: %v", what, err))
	}
}

func expect(what string, holds bool) {
	if !holds {
		panic(what)
	}
}
