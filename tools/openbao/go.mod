module assay.dev/assay/tools/openbao

go 1.26.0

