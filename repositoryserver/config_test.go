// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"strings"
	"testing"
)

func TestParseConfig(t *testing.T) {
	const storage = `"storage":{"type":"s3","bucket":"b","prefix":"p/","accessKeyID":"id","secretAccessKey":"s3cret"}`
	for name, c := range map[string]struct{ raw, want string }{
		"good":            {`{"repositoryID":"r","password":"s3cret",` + storage + `}`, ""},
		"folder":          {`{"repositoryID":"r","password":"s3cret","storage":{"type":"filesystem","path":"/data"}}`, ""},
		"not JSON":        {`{"password":"s3cret"`, "not valid JSON"},
		"another type":    {`{"password":["s3cret"]}`, "not valid JSON"},
		"unknown field":   {`{"pasword":"s3cret"}`, "pasword"},
		"no password":     {`{"repositoryID":"r",` + storage + `}`, "password is missing"},
		"no id":           {`{"password":"s3cret",` + storage + `}`, "repositoryID is missing"},
		"no storage":      {`{"repositoryID":"r","password":"s3cret"}`, "storage type"},
		"unknown storage": {`{"repositoryID":"r","password":"s3cret","storage":{"type":"tape"}}`, "tape"},
		"Google":          {`{"repositoryID":"r","password":"s3cret","storage":{"type":"gcs","bucket":"b","prefix":"p/","serviceAccount":"{}"}}`, ""},
		"Google, no key":  {`{"repositoryID":"r","password":"s3cret","storage":{"type":"gcs","bucket":"b","serviceAccount":"s3cret"}}`, "serviceAccount"},
		"Azure":           {`{"repositoryID":"r","password":"s3cret","storage":{"type":"azure","bucket":"b","prefix":"p/","storageAccount":"a","storageKey":"s3cret"}}`, ""},
		"Azure, no key":   {`{"repositoryID":"r","password":"s3cret","storage":{"type":"azure","bucket":"b","storageAccount":"a"}}`, "storageKey"},
		"short lock":      {`{"repositoryID":"r","password":"s3cret","format":{"objectLockMode":"Governance","objectLock":"24h"},` + storage + `}`, "48h"},
		"odd lock":        {`{"repositoryID":"r","password":"s3cret","format":{"objectLockMode":"Sometimes","objectLock":"72h"},` + storage + `}`, "Sometimes"},
		"lock":            {`{"repositoryID":"r","password":"s3cret","format":{"objectLockMode":"Compliance","objectLock":"72h"},` + storage + `}`, ""},
		"half a user":     {`{"repositoryID":"r","external":{"url":"https://k:1","username":"u","password":"s3cret"}}`, "external"},
		"no bucket":       {`{"repositoryID":"r","password":"s3cret","storage":{"type":"s3"}}`, "bucket"},
		"no key":          {`{"repositoryID":"r","password":"s3cret","storage":{"type":"s3","bucket":"b","secretAccessKey":"s3cret"}}`, "accessKeyID"},
		"a URL":           {strings.Replace(`{"repositoryID":"r","password":"s3cret",`+storage+`}`, `"bucket"`, `"endpoint":"https://s3","bucket"`, 1), "endpoint"},
		"half a prefix":   {strings.Replace(`{"repositoryID":"r","password":"s3cret",`+storage+`}`, `p/`, `p`, 1), "slash"},
		"no path":         {`{"repositoryID":"r","password":"s3cret","storage":{"type":"filesystem"}}`, "path"},
		"unknown hash":    {`{"repositoryID":"r","password":"s3cret","format":{"hash":"MD5"},` + storage + `}`, "MD5"},
		"Kopia's hash":    {`{"repositoryID":"r","password":"s3cret","format":{"hash":"BLAKE2B-256-128"},` + storage + `}`, ""},
		"a shorter hash":  {`{"repositoryID":"r","password":"s3cret","format":{"hash":"HMAC-SHA224"},` + storage + `}`, "HMAC-SHA224"},
		"encryption":      {`{"repositoryID":"r","password":"s3cret","format":{"encryption":"CHACHA20-POLY1305-HMAC-SHA256"},` + storage + `}`, ""},
		"no encryption":   {`{"repositoryID":"r","password":"s3cret","format":{"encryption":"NONE"},` + storage + `}`, "NONE"},
		"splitter":        {`{"repositoryID":"r","password":"s3cret","format":{"splitter":"FIXED-4M"},` + storage + `}`, ""},
		"a tiny splitter": {`{"repositoryID":"r","password":"s3cret","format":{"splitter":"FIXED-128K"},` + storage + `}`, "FIXED-128K"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseConfig([]byte(c.raw))
			switch {
			case c.want == "":
				if err != nil || got.Format.Hash == "" || got.Format.Encryption == "" || got.Format.Splitter == "" {
					t.Errorf("%+v, %v, want a configuration with its defaults", got.Format, err)
				}
			case err == nil || !strings.Contains(err.Error(), c.want):
				t.Errorf("error %v, want %q in it", err, c.want)
			case strings.Contains(err.Error(), "s3cret"):
				t.Errorf("error %q shows a secret", err)
			}
		})
	}
}
